package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tidings-go/tidings/supervisor"
)

// What Jenkins and others read. It keeps to what the schemas of Ant's JUnit task and
// of Jenkins have in common: a step that was not reached is left out, not skipped.
type (
	junitSuite struct {
		XMLName    xml.Name    `xml:"testsuite"`
		Name       string      `xml:"name,attr"`
		Timestamp  string      `xml:"timestamp,attr"`
		Host       string      `xml:"hostname,attr"`
		Tests      int         `xml:"tests,attr"`
		Failures   int         `xml:"failures,attr"`
		Errors     int         `xml:"errors,attr"`
		Time       string      `xml:"time,attr"`
		Properties []junitProp `xml:"properties>property"`
		Cases      []junitCase `xml:"testcase"`
		Out        string      `xml:"system-out"`
		Err        string      `xml:"system-err"`
	}
	junitProp struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitFailure `xml:"failure"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
)

// writeJUnit writes the receipt as a suite of tests, one for each thing that can go
// wrong.
func writeJUnit(w io.Writer, r *supervisor.Receipt) error {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	var text strings.Builder
	if err := printReceipt(&text, r); err != nil {
		return err
	}
	suite := junitSuite{Name: "tidings deploy", Timestamp: r.Began.UTC().Format("2006-01-02T15:04:05"), Host: host,
		Time: seconds(&r.Began, r.Ended), Out: text.String(), Cases: casesOf(r),
		Properties: []junitProp{{"command", strings.Join(r.Command, " ")}, {"generation", fmt.Sprint(r.Generation)}, {"state", r.State}}}
	suite.Tests = len(suite.Cases)
	for _, c := range suite.Cases {
		if c.Failure != nil {
			suite.Failures++
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	return enc.Encode(suite)
}

func casesOf(r *supervisor.Receipt) (cases []junitCase) {
	add := func(name, time string, failed bool, kind, message string) {
		c := junitCase{Name: name, Class: "tidings.deploy", Time: time}
		if failed {
			c.Failure = &junitFailure{Message: message, Type: kind, Text: message}
		}
		cases = append(cases, c)
	}
	committed := r.State == supervisor.DeployCommitted
	add("new workers become ready", seconds(&r.Began, r.Ready), r.Ready == nil, "ready", r.Reason)
	if r.Ready != nil {
		add("new workers pass their probation", seconds(r.Ready, r.Decided), !committed, "probation", r.Reason)
	}
	if committed {
		killed := undrained(r)
		add("old workers drain", seconds(r.Decided, r.Ended), len(killed) > 0, "drain", strings.Join(killed, "; "))
	}
	add("nothing is lost", "0.000", r.Lost > 0, "lost", fmt.Sprintf("%d events were lost", r.Lost))
	add("everything is accounted for", "0.000", len(r.Unaccounted) > 0, "unaccounted", strings.Join(r.Unaccounted, "; "))
	return cases
}

// undrained are the old workers that did not end in order.
func undrained(r *supervisor.Receipt) (killed []string) {
	for _, g := range r.Generations {
		for _, k := range g.Workers {
			if !g.New && k.Ended != "" && k.Ended != "exit status 0" {
				killed = append(killed, fmt.Sprintf("worker %d: %s", k.PID, k.Ended))
			}
		}
	}
	return killed
}

func seconds(from, to *time.Time) string {
	if from == nil || to == nil {
		return "0.000"
	}
	return fmt.Sprintf("%.3f", to.Sub(*from).Seconds())
}
