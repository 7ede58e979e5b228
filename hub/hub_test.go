package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

// processes are what this binary does instead of tests, if a variable says so.
var processes = map[string]func(string) error{}

func TestMain(m *testing.M) {
	for name, f := range processes {
		if arg := os.Getenv(name); arg != "" {
			if err := f(arg); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

// A logBuffer collects what would be on the terminal.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// mustStart starts a hub on any port and stops it when the test ends.
func mustStart(t *testing.T, o Options) *Hub {
	t.Helper()
	if o.Addr == "" && o.Config == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Logger == nil {
		o.Logger = quiet()
	}
	h, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, h) })
	return h
}

func mustStop(t *testing.T, h *Hub) Stopped {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := h.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dial connects as a client does that was given nothing but the URL.
func dial(t *testing.T, h *Hub, opts ...nats.Option) *nats.Conn {
	t.Helper()
	u, err := url.Parse(h.URL())
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(u.Query().Get("token-file"))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("nats://"+u.Host, append(opts, nats.Token(strings.TrimSpace(string(token))))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func stream(t *testing.T, nc *nats.Conn) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"order.>"}, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return js, s
}

func TestRestartKeepsStreamAndPort(t *testing.T) {
	dir := t.TempDir()
	h := mustStart(t, Options{Dir: dir})
	nc := dial(t, h)
	js, _ := stream(t, nc)
	for i := range 10 {
		if _, err := js.Publish(t.Context(), "order.placed", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := mustStop(t, h).Clients; got != 1 {
		t.Errorf("Stop closed %d clients, want 1", got)
	}
	nc.Close()

	again := mustStart(t, Options{Dir: dir})
	if again.URL() != h.URL() {
		t.Errorf("URL after a restart is %s, was %s", again.URL(), h.URL())
	}
	_, s := stream(t, dial(t, again))
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 10 || info.State.LastSeq != 10 {
		t.Errorf("after a restart the stream has %d messages up to %d, want 10 up to 10", info.State.Msgs, info.State.LastSeq)
	}
}

func TestAnyPortWhenTheLastOneIsTaken(t *testing.T) {
	dir := t.TempDir()
	h := mustStart(t, Options{Dir: dir})
	addr := h.srv.Addr().String()
	mustStop(t, h)
	l, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		defer l.Close()
	case !errors.Is(err, syscall.EADDRINUSE): // then somebody else has it
		t.Fatal(err)
	}
	if again := mustStart(t, Options{Dir: dir}); again.URL() == h.URL() {
		t.Errorf("the hub says it is on %s, which is taken", addr)
	}
}

func TestSyncAlways(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir()})
	c := h.srv.JetStreamConfig()
	if !c.SyncAlways {
		t.Error("JetStream does not sync before it acknowledges")
	}
	if c.MaxStore != DefaultMaxStore || c.MaxMemory != DefaultMaxMemory {
		t.Errorf("limits are %d and %d, want the defaults", c.MaxStore, c.MaxMemory)
	}
}

func TestTokenIsRequiredAndNeverShown(t *testing.T) {
	var log logBuffer
	dir := t.TempDir()
	h := mustStart(t, Options{
		Dir: dir, Monitor: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	bare, _, _ := strings.Cut(h.URL(), "?")
	for _, opt := range []nats.Option{nats.Name("none"), nats.Token("wrong")} {
		nc, err := nats.Connect(bare, opt)
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("connecting without the token: %v, want %v", err, nats.ErrAuthorization)
		}
		if nc != nil {
			nc.Close()
		}
	}
	dial(t, h).Close()
	connz := get(t, h.MonitorURL()+"/connz?auth=1&state=any")
	mustStop(t, h)

	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"log": log.String(), "URL": h.URL(), "monitor": connz} {
		if strings.Contains(text, strings.TrimSpace(string(token))) {
			t.Errorf("the token is in the %s:\n%s", where, text)
		}
	}
	if !strings.Contains(log.String(), "nats-server: ") || !strings.Contains(log.String(), "hub: ready") {
		t.Errorf("the logger got nothing of the server's or of the hub's:\n%s", log.String())
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	return string(b)
}

func TestFilesAreTheOwnersOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "hub")
	h := mustStart(t, Options{Dir: dir})
	for name, want := range map[string]os.FileMode{
		"": 0o700, "store": 0o700, "token": 0o600, "lock": 0o600, "address": 0o600, "port": 0o600,
	} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Mode().Perm(); got != want {
			t.Errorf("mode of DIR/%s is %04o, want %04o", name, got, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "address"))
	if err != nil || string(b) != h.URL()+"\n" {
		t.Errorf("DIR/address holds %q (%v), want %q", b, err, h.URL())
	}
	mustStop(t, h)
	if _, err := os.Stat(filepath.Join(dir, "address")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("DIR/address is there after Stop: %v", err)
	}
}

func TestOneHubPerDirectory(t *testing.T) {
	dir := t.TempDir()
	mustStart(t, Options{Dir: dir})
	_, err := Start(t.Context(), Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quiet()})
	wantError(t, err, dir, fmt.Sprintf("pid %d", os.Getpid()))
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, p := range append(parts, "hub: ") {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"no directory":      {Options{Dir: "-"}, []string{"Options.Dir"}},
		"not a directory":   {Options{Dir: file}, []string{file}},
		"taken port":        {Options{Addr: taken.Addr().String()}, []string{taken.Addr().String(), "Options.Addr"}},
		"taken monitor":     {Options{Monitor: taken.Addr().String()}, []string{taken.Addr().String(), "Options.Monitor"}},
		"no port":           {Options{Addr: "127.0.0.1"}, []string{"Options.Addr", "127.0.0.1"}},
		"bad port":          {Options{Addr: "127.0.0.1:70000"}, []string{"Options.Addr", "70000"}},
		"all interfaces":    {Options{Addr: ":0"}, []string{"Options.Addr", "Options.Expose"}},
		"another interface": {Options{Addr: "192.0.2.1:0"}, []string{"192.0.2.1:0", "Options.Expose"}},
		"exposed monitor":   {Options{Monitor: "0.0.0.0:0", Expose: true}, []string{"Options.Monitor", "127.0.0.1"}},
		"exposed health":    {Options{Health: "0.0.0.0:0", Expose: true}, []string{"Options.Health", "127.0.0.1"}},
		"taken health":      {Options{Health: taken.Addr().String()}, []string{taken.Addr().String(), "Options.Health"}},
		"no users file":     {Options{Users: "none.conf"}, []string{"users file", "none.conf"}},
		"negative limit":    {Options{MaxStore: -1}, []string{"Options.MaxStore"}},
	} {
		t.Run(name, func(t *testing.T) {
			switch c.o.Dir {
			case "":
				c.o.Dir = t.TempDir()
			case "-":
				c.o.Dir = ""
			}
			if c.o.Addr == "" {
				c.o.Addr = "127.0.0.1:0"
			}
			c.o.Logger = quiet()
			_, err := Start(t.Context(), c.o)
			wantError(t, err, c.want...)
			if c.o.Dir == "" || c.o.Dir == file {
				return
			}
			// Nothing is held: the directory can be used at once.
			mustStart(t, Options{Dir: c.o.Dir})
		})
	}
}

func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		dir = "/proc/self" // where root may not make a file either
	}
	_, err := Start(t.Context(), Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quiet()})
	wantError(t, err, dir, "writable")
}

func TestTokenFileIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    []string
	}{
		"readable by the group": {"secret\n", 0o640, []string{"chmod 600", "0640"}},
		"readable by all":       {"secret\n", 0o604, []string{"chmod 600", "0604"}},
		"empty":                 {"\n", 0o600, []string{"is empty"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "token")
			if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, c.mode); err != nil { // whatever the umask is
				t.Fatal(err)
			}
			_, err := Start(t.Context(), Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quiet()})
			wantError(t, err, append(c.want, file)...)
			if strings.Contains(err.Error(), "secret") {
				t.Error("the error shows the token:", err)
			}
		})
	}
}

func TestStartObeysContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Start(ctx, Options{Dir: t.TempDir(), Addr: "127.0.0.1:0", Logger: quiet()})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a cancelled context: %v", err)
	}
}

func TestStopObeysContextAndRepeats(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir()})
	nc := dial(t, h, nats.NoReconnect())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Stop(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	first, second := mustStop(t, h), mustStop(t, h)
	if first != second || first.Clients != 1 {
		t.Errorf("Stop says %+v, then %+v; want 1 client twice", first, second)
	}
	<-h.Done()
	if err := h.Err(); err != nil {
		t.Error(err)
	}
	nc.Close()
}

// A fault that ends a nats-server process stops the hub, frees the directory
// and is told.
func TestServerFaultStopsTheHub(t *testing.T) {
	dir := t.TempDir()
	h := mustStart(t, Options{Dir: dir})
	if err := h.Err(); err != nil {
		t.Error("Err of a running hub:", err)
	}
	h.srv.Fatalf("disk %s", "gone")
	<-h.Done()
	wantError(t, fmt.Errorf("hub: %w", h.Err()), "disk gone")
	if _, err := h.Stop(t.Context()); err == nil {
		t.Error("Stop hides the fault")
	}
	h.err = nil // told; the clean-up must not fail for it
	mustStart(t, Options{Dir: dir})
}

func TestExposedWarnsWithoutTLS(t *testing.T) {
	var log logBuffer
	h := mustStart(t, Options{
		Dir: t.TempDir(), Addr: "0.0.0.0:0", Expose: true,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if !strings.Contains(log.String(), "without TLS") {
		t.Errorf("no warning:\n%s", log.String())
	}
	if !strings.HasPrefix(h.URL(), "nats://127.0.0.1:") {
		t.Errorf("URL for this machine's clients is %s", h.URL())
	}
	dial(t, h)
}

func TestTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	var log logBuffer
	h := mustStart(t, Options{
		Dir: t.TempDir(), Addr: "0.0.0.0:0", Expose: true,
		TLS:    &tls.Config{Certificates: web.TLS.Certificates},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if strings.Contains(log.String(), "without TLS") {
		t.Errorf("a warning although TLS is on:\n%s", log.String())
	}
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	nc := dial(t, h, nats.Secure(&tls.Config{RootCAs: roots}))
	if _, err := nc.TLSConnectionState(); err != nil {
		t.Error("the connection is not encrypted:", err)
	}
}

func TestURLSurvivesStrangeDirectories(t *testing.T) {
	h := mustStart(t, Options{Dir: filepath.Join(t.TempDir(), "a b&c+d%e?f;g")})
	dial(t, h)
}

// Start and Stop leave nothing running; TestMain looks for what they left.
func TestStartStopStress(t *testing.T) {
	dir := t.TempDir()
	for range 20 {
		h := mustStart(t, Options{Dir: dir})
		var stops sync.WaitGroup
		for range 4 {
			stops.Go(func() { _, _ = h.Stop(t.Context()) })
		}
		stops.Wait()
	}
}
