//go:build unix

package supervisor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestHubIsChecked(t *testing.T) {
	find := func() (HubFound, error) { return HubFound{}, nil }
	for name, c := range map[string]struct {
		hub  *Hub
		want string
	}{
		"none":              {nil, ""},
		"all":               {&Hub{Dir: "/hub", Args: []string{"hub"}, Find: find}, ""},
		"a relative path":   {&Hub{Dir: "hub", Args: []string{"hub"}, Find: find}, "Hub.Dir"},
		"nothing to start":  {&Hub{Dir: "/hub", Find: find}, "Args"},
		"no way to find it": {&Hub{Dir: "/hub", Args: []string{"hub"}}, "Find"},
	} {
		_, err := Config{Command: []string{"true"}, Hub: c.hub}.withDefaults()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: the error is %v, want one that says %q", name, err, c.want)
		}
	}
}

// Whose the hub is is known of the latest ones, and what is noted does not grow.
func TestHubsThatMastersHaveStarted(t *testing.T) {
	h := &companion{Hub: &Hub{Dir: t.TempDir()}}
	if h.supervised(7) || h.supervised(0) {
		t.Error("a hub is known that nobody has started")
	}
	for pid := 100_000; pid < 100_100; pid++ {
		if err := h.supervise(pid); err != nil {
			t.Fatal(err)
		}
		if !h.supervised(pid) || pid > 100_000 && pid%5 == 0 && h.supervised(pid+1) {
			t.Fatalf("of %d it is not known who has started it", pid)
		}
	}
	st, err := os.Stat(h.file("supervised"))
	if err != nil || st.Size() > 2*hubNotes {
		t.Errorf("the notes have %d bytes (%v)", st.Size(), err)
	}
}

func TestHubsLastWords(t *testing.T) {
	h := &companion{Hub: &Hub{Dir: t.TempDir()}}
	if words := h.lastWords(); words != "" {
		t.Errorf("without a log its last words are %q", words)
	}
	log := filepath.Join(h.Dir, "hub.log")
	if err := os.WriteFile(log, []byte("of the start before\nport taken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.logFrom = int64(len("of the start before\n"))
	if words := h.lastWords(); words != ", with the last words: port taken" {
		t.Errorf("its last words are %q", words)
	}
	h.logFrom = 1 << 20 // the log was cut off meanwhile
	if words := h.lastWords(); words != "" {
		t.Errorf("its last words are %q", words)
	}
}

// A worker is told of the hub unless it is told of another broker, once, and not by an
// empty variable before.
func TestWorkersAreToldOfTheHub(t *testing.T) {
	for _, c := range []struct {
		name, url string
		env, want []string
	}{
		{"nothing said", "nats://hub", []string{"A=1"}, []string{"A=1", "TIDINGS_URL=nats://hub"}},
		{"another broker", "nats://hub", []string{"TIDINGS_URL=nats://other", "A=1"}, []string{"TIDINGS_URL=nats://other", "A=1"}},
		{"an empty one", "nats://hub", []string{"TIDINGS_URL=", "A=1"}, []string{"A=1", "TIDINGS_URL=nats://hub"}},
		{"not ready", "", []string{"A=1"}, []string{"A=1"}},
	} {
		m := &master{hub: &companion{url: c.url}}
		if got := m.withHub(slices.Clone(c.env)); !slices.Equal(got, c.want) {
			t.Errorf("%s: the environment is %q, want %q", c.name, got, c.want)
		}
	}
	if got := (&master{}).withHub([]string{"A=1"}); len(got) != 1 {
		t.Errorf("without a hub the environment is %q", got)
	}
}

func TestHubsStatus(t *testing.T) {
	if (*companion)(nil).status() != nil || (*companion)(nil).says() != "" {
		t.Error("a master without a hub shows one")
	}
	h := &companion{Hub: &Hub{Dir: "/hub"}, since: time.Now()}
	for _, c := range []struct {
		change func()
		state  string
		pid    int
		says   string
	}{
		{func() {}, "waiting", 0, "the hub is starting"},
		{func() { h.child = 7 }, "starting", 7, "the hub is starting"},
		{func() { h.child, h.deaths, h.lastDeath = 0, 2, "exit status 1\nport taken" }, "waiting", 0, "the hub has died 2 times in a row: exit status 1 | port taken"},
		{func() { h.child, h.seen = 8, HubFound{Running: true, PID: 8} }, "starting", 8, "has died"},
		{func() { h.seen.URL, h.url = "nats://hub", "nats://hub" }, "running", 8, ""},
		{func() { h.ending = true }, "stopping", 8, ""},
	} {
		c.change()
		s := h.status()
		if s.State != c.state || s.PID != c.pid || s.Dir != "/hub" {
			t.Errorf("the status is %+v, want %s of %d", s, c.state, c.pid)
		}
		if says := h.says(); !strings.Contains(says, c.says) || c.says == "" && says != "" {
			t.Errorf("in state %s it says %q, want %q", c.state, says, c.says)
		}
	}
}

// The workers' user, whose directory it may be, leads a master of root's nowhere by
// links, and has it signal nobody else's processes.
func TestHubsFilesAreNoLinks(t *testing.T) {
	h := &companion{Hub: &Hub{Dir: t.TempDir()}}
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, h.file("supervised")); err != nil {
		t.Fatal(err)
	}
	if err := h.supervise(7); err == nil {
		t.Error("a link is written to")
	}
	if st, err := os.Stat(target); err != nil || st.Size() > 0 {
		t.Errorf("what the link leads to has changed: %v, %v", st, err)
	}
	if _, err := (&master{cfg: Config{Hub: &Hub{Dir: linked(t, "masters", target)}}}).openHub(); err == nil {
		t.Error("a link is locked")
	}
	others := &identity{cred: &syscall.Credential{Uid: uint32(os.Getuid()) + 1}}
	if others.owns(os.Getpid()) || !(*identity)(nil).owns(os.Getpid()) {
		t.Error("this process is another user's")
	}
}

// linked is a directory with a link.
func linked(t *testing.T, name, target string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	return dir
}
