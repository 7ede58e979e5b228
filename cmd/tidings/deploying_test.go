package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const deploying = "../../examples/deploying/"

// commandsIn are the command lines of tidings in a file, with what is continued on
// the next line.
func commandsIn(t *testing.T, file, before string) (lines [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deploying, file))
	if err != nil {
		t.Fatal(err)
	}
	plain := regexp.MustCompile(`(?m)^\s*(//|#).*\n|// .*`).ReplaceAllString(string(text), "")
	joined := strings.ReplaceAll(plain, "\\\n", " ")
	for _, m := range regexp.MustCompile(before+`tidings (.*)`).FindAllStringSubmatch(joined, -1) {
		line, _, _ := strings.Cut(strings.TrimRight(m[1], "' }"), " ||")
		lines = append(lines, strings.Fields(line))
	}
	return lines
}

// What the examples of deploying tell tidings to do, it understands.
func TestExamplesOfDeployingAreUnderstood(t *testing.T) {
	for file, want := range map[string][]string{"pay.service": {"run"}, "Jenkinsfile": {"deploy", "deploy"}} {
		var got []string
		for _, args := range commandsIn(t, file, map[string]string{"pay.service": "ExecStart=/usr/local/bin/", "Jenkinsfile": "(?:^|[ '])"}[file]) {
			got = append(got, args[0])
			if _, err := newParser(new(cli)).Parse(args); err != nil {
				t.Errorf("%s: %q: %v", file, args, err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has the commands %q, want %q", file, got, want)
		}
	}
}

// systemd understands the unit. It looks for the program, so it is shown another.
func TestTheUnitIsUnderstood(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v: install the package systemd", err)
	}
	dir := t.TempDir()
	unit, err := os.ReadFile(deploying + "pay.service")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(text string) (complaints []string) {
		t.Helper()
		file := filepath.Join(dir, "pay.service")
		if err := os.WriteFile(file, []byte(strings.Replace(text, "/usr/local/bin/tidings", "/bin/true", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", file).CombinedOutput()
		for line := range strings.Lines(string(out)) { // there may be others' units on this machine
			if strings.Contains(line, "pay") {
				complaints = append(complaints, line)
			}
		}
		if err != nil && complaints == nil {
			complaints = append(complaints, err.Error(), string(out))
		}
		return complaints
	}
	if got := verify(string(unit)); got != nil {
		t.Errorf("systemd-analyze: %q", got)
	}
	if got := verify(strings.Replace(string(unit), "\nKillMode=", "\nKillMoode=", 1)); len(got) == 0 {
		t.Error("systemd-analyze does not mind a misspelt key: it proves nothing")
	}
	reload, err := os.ReadFile(deploying + "reload.conf")
	if err != nil {
		t.Fatal(err)
	}
	// A later section of the same name is what a drop-in is. systemd 252 knows all
	// but the type.
	got := verify(string(unit) + string(reload))
	if len(got) > 1 || len(got) == 1 && !strings.Contains(got[0], "notify-reload") {
		t.Errorf("systemd-analyze, with reload.conf: %q", got)
	}
}
