package main

import (
	"bytes"
	"encoding/xml"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// schemas is set by CI, which has them from elsewhere.
var schemas = flag.String("schemas", "", "folder with JUnit.xsd and jenkins-junit.xsd, to check reports by xmllint")

// Whatever became of a deploy, its report has a test for each step that was reached,
// those that failed say why, and, with -schemas, Ant's and Jenkins' schemas allow it.
func TestJUnitReports(t *testing.T) {
	t0 := time.Date(2026, 11, 26, 1, 2, 3, 0, time.FixedZone("CET", 3600))
	at := func(s int) *time.Time { t := t0.Add(time.Duration(s) * time.Second); return &t }
	sub := sdnotify.SubscriptionReport{Pattern: "order.*", Group: "billing", Durable: true, Received: 5, Handled: 4, Left: 1}
	old := supervisor.GenerationReceipt{Generation: 1, Version: "v1.2.3", Subscriptions: []sdnotify.SubscriptionReport{sub},
		Workers: []supervisor.MemberReceipt{{PID: 7, Ended: "exit status 0", Counted: true, Left: []sdnotify.LeftReport{{Pattern: "order.*", Group: "billing", IDs: []string{"e1"}}}}}}
	killed := old
	killed.Workers = []supervisor.MemberReceipt{{PID: 8, Ended: "not gone within 1s of QUIT, signal: killed"}}
	for name, c := range map[string]struct {
		r      supervisor.Receipt
		reach  int
		failed []string
	}{
		"committed": {supervisor.Receipt{State: supervisor.DeployCommitted, Ready: at(1), Decided: at(11), Ended: at(12), Generations: []supervisor.GenerationReceipt{old}}, 5, nil},
		"lost": {supervisor.Receipt{State: supervisor.DeployCommitted, Ready: at(1), Decided: at(11), Ended: at(12), Lost: 3, Unaccounted: []string{"worker 8"}, Generations: []supervisor.GenerationReceipt{killed}}, 5,
			[]string{"worker 8: not gone within 1s of QUIT, signal: killed", "3 events were lost", "worker 8"}},
		"not ready": {supervisor.Receipt{State: supervisor.DeployRolledBack, Reason: "it died: <&>\"\x1b[31m red", Decided: at(1), Ended: at(1)}, 3, []string{"it died: <&>\"\ufffd[31m red"}},
		"regressed": {supervisor.Receipt{State: supervisor.DeployRolledBack, Reason: "9 errors", Ready: at(1), Decided: at(2), Ended: at(3)}, 4, []string{"9 errors"}},
		"stopped":   {supervisor.Receipt{State: supervisor.DeployStopped, Reason: "the master was stopped", Ended: at(3)}, 3, []string{"the master was stopped"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.Deploy, c.r.Generation, c.r.Began, c.r.Command = 3, 2, t0, []string{"./app", "--flag"}
			var text bytes.Buffer
			if err := writeJUnit(&text, &c.r); err != nil {
				t.Fatal(err)
			}
			var suite junitSuite
			if err := xml.Unmarshal(text.Bytes(), &suite); err != nil {
				t.Fatal(err)
			}
			var failed []string
			for _, k := range suite.Cases {
				if k.Failure != nil {
					failed = append(failed, k.Failure.Message)
				}
			}
			if suite.Tests != c.reach || len(suite.Cases) != c.reach || suite.Failures != len(failed) || !slices.Equal(failed, c.failed) || suite.Timestamp != "2026-11-26T00:02:03" {
				t.Errorf("%d tests, failed: %q; want %d, %q", suite.Tests, failed, c.reach, c.failed)
			}
			if *schemas == "" {
				return
			}
			file := filepath.Join(t.TempDir(), "report.xml")
			if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, schema := range []string{"JUnit.xsd", "jenkins-junit.xsd"} {
				if out, err := exec.Command("xmllint", "--noout", "--schema", filepath.Join(*schemas, schema), file).CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", schema, err, out)
				}
			}
		})
	}
}
