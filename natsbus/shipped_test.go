package natsbus_test

import (
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/doctor"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// shippedDir is what users are given.
const shippedDir = "../examples/cluster"

// A shipped cluster is what examples/cluster makes, with other ports.
type shipped struct {
	nodes []*node
	dir   string // of the secrets; the nodes run there
	rest  string // of the URL, after the hosts
}

// url is that of an application that knows these nodes, all if none are named.
func (s *shipped) url(nodes ...int) string {
	var hosts []string
	for i, n := range s.nodes {
		if len(nodes) == 0 || nodes[0] == i {
			hosts = append(hosts, n.addr)
		}
	}
	return "nats://" + strings.Join(hosts, ",") + s.rest
}

// raw is the URL for nats.go itself, which reads no token file.
func (s *shipped) raw(t *testing.T) string {
	t.Helper()
	var all []string
	for _, n := range s.nodes {
		all = append(all, "nats://"+strings.TrimSpace(readFile(t, filepath.Join(s.dir, "token")))+"@"+n.addr)
	}
	return strings.Join(all, ",")
}

// ship starts the three nodes from their files, in which only ports are replaced, and
// what edit does.
func ship(t *testing.T, edit func(string) string) *shipped {
	t.Helper()
	s := &shipped{dir: t.TempDir()}
	script := filepath.Join(abs(t, shippedDir), "secrets.sh")
	secrets := exec.Command("sh", script)
	testkit.Program(t, "openssl", "openssl")
	secrets.Dir, secrets.Stderr = s.dir, t.Output()
	if err := secrets.Run(); err != nil {
		t.Fatal(err)
	}
	s.rest = "?token-file=" + url.QueryEscape(filepath.Join(s.dir, "token")) + "&replicas=3"
	var ports []string
	var addrs []string
	for i := range 3 {
		addrs = append(addrs, testkit.FreeAddr(t))
		ports = append(ports, fmt.Sprint("127.0.0.1:", 4222+i), addrs[i], fmt.Sprint("127.0.0.1:", 6222+i), testkit.FreeAddr(t),
			fmt.Sprint("127.0.0.1:", 8222+i), testkit.FreeAddr(t))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		name := fmt.Sprint("node", i+1)
		text, err := os.ReadFile(filepath.Join(shippedDir, name+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		conf := filepath.Join(s.dir, name+".conf")
		if err := os.WriteFile(conf, []byte(strings.NewReplacer(ports...).Replace(edit(string(text)))), 0o600); err != nil {
			t.Fatal(err)
		}
		n := &node{t: t, name: name, addr: addrs[i]}
		n.make = func() *exec.Cmd {
			cmd := exec.Command(self)
			cmd.Dir = s.dir
			cmd.Env = append(os.Environ(), nodeEnv+"="+conf)
			return cmd
		}
		n.start()
		t.Cleanup(n.kill)
		s.nodes = append(s.nodes, n)
	}
	return s
}

func abs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func asShipped(text string) string { return text }

// join opens a connection as an application would, once the cluster is ready for it.
func (s *shipped) join(t *testing.T, url string, cfg adapter.Config) (a adapter.Adapter) {
	t.Helper()
	if cfg.App == "" {
		cfg.App = "shop"
	}
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	testkit.Until(t, 3*patience, func() bool {
		var err error
		if a, err = natsbus.Open(within(t), url, cfg); err != nil {
			t.Log(err)
		}
		return err == nil
	})
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// What is shipped lets in who has the token, and nobody else; nodes let in those that
// have the key, and nobody else.
func TestAShippedClusterIsClosed(t *testing.T) {
	s := ship(t, asShipped)
	a := s.join(t, s.url(), adapter.Config{Durable: []string{"order.>"}})
	publish(t, a, adapter.Durable, "1", "order.placed")
	if n := streamInfo(t, jsClient(t, s.raw(t)), "shop").Config.Replicas; n != 3 {
		t.Errorf("%d copies", n)
	}
	for _, n := range s.nodes {
		if _, err := natsbus.Open(within(t), n.url(), adapter.Config{App: "shop"}); err == nil || !strings.Contains(err.Error(), "refused the credentials") {
			t.Errorf("without the token: %v", err)
		}
	}
	route := ""
	for line := range strings.Lines(readFile(t, filepath.Join(s.dir, "node1.conf"))) {
		if _, after, ok := strings.Cut(line, "routes: [ nats://"); ok {
			route, _, _ = strings.Cut(after, ",")
		}
	}
	routes, err := url.Parse("nats://" + route)
	if err != nil || route == "" {
		t.Fatal(route, err)
	}
	stranger := testkit.Server(t, func(o *server.Options) {
		o.ServerName = "stranger"
		o.Cluster = server.ClusterOpts{Name: "tidings", Host: "127.0.0.1", Port: -1}
		o.Routes = []*url.URL{routes}
	})
	if n := stranger.Running().NumRoutes(); n != 0 {
		t.Errorf("a stranger has %d routes into the cluster", n)
	}
	for _, name := range []string{"token", "secrets.conf", "cluster-key.pem"} {
		if st, err := os.Stat(filepath.Join(s.dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st, err)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The doctor finds nothing that fails in what is shipped, and names the copy that is away
// when a node is.
func TestTheDoctorVisitsAShippedCluster(t *testing.T) {
	s := ship(t, asShipped)
	a := s.join(t, s.url(), adapter.Config{Durable: []string{"order.>"}})
	publish(t, a, adapter.Durable, "1", "order.placed")
	whole(t, jsClient(t, s.raw(t)), 3)
	look := func() (all string, r *doctor.Report) {
		r, err := doctor.Examine(within(t), doctor.Options{URL: s.url(), App: "shop", Routes: "order.>=durable"})
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		if err := r.Print(&text); err != nil {
			t.Fatal(err)
		}
		return text.String(), r
	}
	text, r := look()
	for _, c := range r.Checks {
		if c.Verdict == doctor.Fail || strings.HasPrefix(c.Name, "stream") && (c.Verdict != doctor.OK || !strings.Contains(c.Found, "3 copies")) {
			t.Errorf("%+v", c)
		}
	}
	s.nodes[1].kill()
	testkit.Until(t, 3*patience, func() bool {
		text, _ = look()
		return strings.Contains(text, "the copy on node2 is ") && strings.Contains(text, "others of the URL answer")
	})
	t.Log("\n" + text)
}

// The line for clients that come over a network does what it says.
func TestAShippedClusterSpeaksTLS(t *testing.T) {
	s := ship(t, func(text string) string { return strings.Replace(text, "#tls {", "tls {", 1) })
	plain := strings.Replace(s.url(), "nats://", "tls://", 1)
	a := s.join(t, plain+"&ca="+url.QueryEscape(filepath.Join(s.dir, "cluster.pem")), adapter.Config{Durable: []string{"order.>"}})
	publish(t, a, adapter.Durable, "1", "order.placed")
	if _, err := natsbus.Open(within(t), plain, adapter.Config{App: "shop"}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the certificate: %v", err)
	}
}
