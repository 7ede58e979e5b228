package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
	"github.com/tidings-go/tidings/redact"
)

// ears hear everything that comes out, and know the secrets. Their methods may be called
// concurrently.
type ears struct {
	mu      sync.Mutex
	secrets map[string]string // by what they are
	heard   int
	leaks   map[string]string // by what and where
}

func newEars() *ears { return &ears{secrets: map[string]string{}, leaks: map[string]string{}} }

// secret makes one that occurs nowhere else.
func (e *ears) secret(what string) string {
	k, err := nkeys.CreateUser()
	if err != nil {
		panic(err)
	}
	seed, err := k.Seed()
	if err != nil {
		panic(err)
	}
	return e.keep(what, string(seed)[8:40])
}

func (e *ears) keep(what, secret string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.secrets[what] = secret
	return secret
}

// part is how many characters in a row give a secret away.
const part = 8

func (e *ears) hear(where, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard++
	for what, s := range e.secrets {
		for i := range len(s) - part + 1 {
			if at := strings.Index(text, s[i:i+part]); at >= 0 {
				e.leaks[what+" in "+where] = text[max(0, at-100):min(len(text), at+100)]
				break
			}
		}
	}
}

// error is heard as a log would show it, and in full.
func (e *ears) error(where string, err error) {
	for err != nil {
		e.hear(where, fmt.Sprintf("%v\n%+v\n%q", err, err, err))
		err = errors.Unwrap(err)
	}
}

func (e *ears) json(where string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	e.hear(where, string(b)+fmt.Sprintf("\n%v\n%+v", v, v))
}

// Write hears a log.
func (e *ears) Write(p []byte) (int, error) {
	e.hear("the log", string(p))
	return len(p), nil
}

func (e *ears) log() *slog.Logger {
	return slog.New(slog.NewJSONHandler(e, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
}

func (e *ears) judge(t *testing.T, least int) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for what, context := range e.leaks {
		t.Errorf("%s: …%s…", what, context)
	}
	if e.heard < least {
		t.Errorf("only %d things were heard: this proves nothing", e.heard)
	}
}

// tree hears all files below dir, but for those that hold a secret as they should, and
// minds what others can read: a directory of mode 0700 hides what is in it.
func (e *ears) tree(t *testing.T, dir string, except ...string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // it has gone
		}
		mode := info.Mode().Perm()
		switch {
		case d.IsDir() && mode&0o077 == 0:
			e.contents(path, except)
			return fs.SkipDir
		case d.IsDir():
		case mode&0o077 != 0 && d.Name() != "pid": // which is for others
			t.Errorf("%s can be read by others, mode %04o", path, mode)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	e.contents(dir, except)
}

func (e *ears) contents(dir string, except []string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || slices.Contains(except, filepath.Base(path)) {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil {
			e.hear("file "+path, string(b))
		}
		return nil
	})
}

// A way is one in which a secret comes in.
type way struct {
	name  string
	serve string // of the server's configuration
	// url is of a server, with the secret; wrong with another one, that is refused.
	url, wrong func(host string) string
}

func ways(t *testing.T, e *ears, dir string) []way {
	t.Helper()
	at := func(format string, secret ...any) func(string) string {
		return func(host string) string { return fmt.Sprintf(format, append(slices.Clone(secret), host)...) }
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return url.QueryEscape(path)
	}
	token, wrong, filed, wrongFiled := e.secret("token"), e.secret("wrong token"), e.secret("token in a file"), e.secret("wrong token in a file")
	password, wrongPassword := "p@ss/"+e.secret("password"), "p?ss:"+e.secret("wrong password")
	serve, creds, wrongCreds := signed(t, e)
	quote := func(format, secret string) string { return fmt.Sprintf(format, fmt.Sprintf("%q", secret)) }
	user, wrongUser := e.secret("secret in a user file"), e.secret("wrong secret in a user file")
	public, seed := e.seed(t, "nkey")
	_, wrongSeed := e.seed(t, "wrong nkey")
	return []way{
		{"user-file", quote("authorization { user: shop, password: %s }", user),
			at("nats://%[2]s?user-file=%[1]s", file("user", "shop:"+user+"\n")), at("nats://%[2]s?user-file=%[1]s", file("wrong-user", "shop:"+wrongUser))},
		{"nkey", "authorization { users: [ { nkey: " + public + " } ] }",
			at("nats://%[2]s?nkey=%[1]s", file("good.nk", seed)), at("nats://%[2]s?nkey=%[1]s", file("wrong.nk", wrongSeed))},
		{"token", quote("authorization { token: %s }", token), at("nats://%s@%s", token), at("nats://%s@%s", wrong)},
		{"password", quote("authorization { user: shop, password: %s }", password),
			at("nats://shop:%s@%s", url.QueryEscape(password)), at("nats://shop:%s@%s", url.QueryEscape(wrongPassword))},
		{"token-file", quote("authorization { token: %s }", filed),
			at("nats://%[2]s?token-file=%[1]s", file("token", filed+"\n")), at("nats://%[2]s?token-file=%[1]s", file("wrong-token", wrongFiled))},
		{"creds", serve, at("nats://%[2]s?creds=%[1]s", file("good.creds", creds)), at("nats://%[2]s?creds=%[1]s", file("wrong.creds", wrongCreds))},
	}
}

// seed makes a key that signs.
func (e *ears) seed(t *testing.T, what string) (public, seed string) {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err1 := k.PublicKey()
	b, err2 := k.Seed()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return public, e.keep(what, string(b))
}

// signed is a server whose users have JWTs, and the credentials of one that it knows and
// of one that it does not.
func signed(t *testing.T, e *ears) (serve, creds, wrong string) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	pair := func(make func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		k, err := make()
		check(err)
		public, err := k.PublicKey()
		check(err)
		return k, public
	}
	operator, operatorID := pair(nkeys.CreateOperator)
	claims, err := jwt.NewOperatorClaims(operatorID).Encode(operator)
	check(err)
	resolved := ""
	account := func(of nkeys.KeyPair, stores bool) (nkeys.KeyPair, string) {
		k, id := pair(nkeys.CreateAccount)
		c := jwt.NewAccountClaims(id)
		if stores {
			c.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1, MaxAckPending: -1}
		}
		text, err := c.Encode(of)
		check(err)
		resolved += id + ": " + text + "\n"
		return k, id
	}
	_, system := account(operator, false)
	shop, _ := account(operator, true)
	stranger, _ := pair(nkeys.CreateAccount)
	user := func(what string, of nkeys.KeyPair) string {
		k, id := pair(nkeys.CreateUser)
		text, err := jwt.NewUserClaims(id).Encode(of)
		check(err)
		seed, err := k.Seed()
		check(err)
		e.keep(what+" seed", string(seed))
		b, err := jwt.FormatUserConfig(text, seed)
		check(err)
		return string(b)
	}
	serve = fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n%s}\n", claims, system, resolved)
	return serve, user("creds", shop), user("wrong creds", stranger)
}

// A serverProcess is a nats-server that is a process of its own.
type serverProcess struct {
	t          *testing.T
	conf, addr string
	cmd        *exec.Cmd
}

func newServerProcess(t *testing.T, conf string) *serverProcess {
	t.Helper()
	s := &serverProcess{t: t, conf: filepath.Join(t.TempDir(), "conf"), addr: testkit.FreeAddr(t)}
	text := fmt.Sprintf("listen: %q\njetstream { store_dir: %q }\n%s\n", s.addr, t.TempDir(), conf)
	if err := os.WriteFile(s.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *serverProcess) start() {
	s.t.Helper()
	s.cmd = exec.Command("nats-server", s.conf)
	s.cmd.Stderr = s.t.Output()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	testkit.Until(s.t, scriptPatience, func() bool {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

func (s *serverProcess) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(os.Interrupt)
		_ = s.cmd.Wait()
	}
	s.cmd = nil
}

// A customer is a payload with what nobody is to see.
type customer struct {
	ID       string
	Password string
	Card     string `redact:"true"`
}

// Whatever way a secret comes in, it does not come out again: not in logs at debug level,
// errors, snapshots, events, dead letters, spools or the files of anything.
func TestNoSecretComesOut(t *testing.T) {
	e := newEars()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // so that it hides nothing
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	before := slog.Default()
	slog.SetDefault(e.log())
	defer slog.SetDefault(before)
	t.Run("by", func(t *testing.T) {
		for _, w := range ways(t, e, keys) {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				srv := newServerProcess(t, w.serve)
				host := srv.addr
				spool := filepath.Join(dir, "spool-"+w.name)
				e.live(t, srv, w.url(host), spool)
				e.refuse(t, w, host, filepath.Join(dir, "other-"+w.name))
				e.misspell(w.url(host))
				e.command(t, w.url(host), w.wrong(host), spool)
			})
		}
	})
	e.tree(t, dir, "token", "wrong-token", "good.creds", "wrong.creds", "user", "wrong-user", "good.nk", "wrong.nk")
	e.judge(t, 1000)
}

// live has a bus do all that it can.
func (e *ears) live(t *testing.T, srv *serverProcess, url, spool string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	check := func(err error) {
		t.Helper()
		if e.error("an error", err); err != nil {
			t.Error(err)
		}
	}
	password, card := e.secret("payload's password"), e.secret("payload's card")
	bus, err := tidings.Open(ctx, url, tidings.Options{App: "shop", SpoolDir: spool, Logger: e.log(), Redact: redact.New().Value,
		Routes:  []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}, {Pattern: "cart.>", Class: tidings.Live}},
		OnError: func(_ context.Context, err error) { e.error("OnError", err) }})
	if check(err); err != nil {
		return
	}
	events, _, err := bus.Debugger().Watch(ctx, ">", nil)
	check(err)
	handled, died := make(chan string, 100), make(chan struct{}, 100)
	handler := func(_ context.Context, ev tidings.Event) error {
		var c customer
		if err := ev.Decode(&c); err != nil {
			e.error("Decode", err)
			return tidings.Permanent(err)
		}
		e.json("an event", ev)
		e.json("a payload", c)
		handled <- c.ID
		switch c.ID {
		case "panics":
			panic(fmt.Sprintf("cannot handle %+v", c))
		case "fails":
			return fmt.Errorf("cannot handle %+v", c)
		}
		return nil
	}
	for pattern, durable := range map[string]bool{"order.*": true, "cart.*": false} {
		_, err = bus.Subscribe(ctx, pattern, handler, &tidings.SubscribeOptions{Durable: durable, Retry: tidings.Retry{Attempts: 2, Backoff: time.Millisecond}})
		check(err)
	}
	_, err = bus.Subscribe(ctx, "tidings.dead", func(_ context.Context, ev tidings.Event) error {
		e.json("a death", ev.Payload())
		died <- struct{}{}
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	check(err)
	check(bus.Ready(ctx))
	one := func(topic, id string) error { return bus.Publish(ctx, topic, customer{id, password, card}) }
	for _, id := range []string{"good", "panics", "fails"} {
		check(one("order.placed", id))
		check(one("cart.seen", id))
	}
	<-died
	<-died
	e.error("a bad topic", one("order..placed", "x"))
	e.error("what cannot be encoded", bus.Publish(ctx, "order.placed", map[string]any{"password": password, "f": func() {}}))
	e.error("what is too large", bus.Publish(ctx, "order.placed", map[string]any{"password": password, "x": strings.Repeat("x", 2<<20)}))
	soon, over := context.WithTimeout(ctx, 100*time.Millisecond)
	_, err = bus.Request(soon, "cart.asked", customer{"asks", password, card})
	over()
	e.error("nobody answers", err)
	letters, err := deadletter.Open(ctx, url, deadletter.Options{})
	check(err)
	for l, err := range letters.List(ctx, deadletter.Selection{All: true}) {
		check(err)
		e.json("a letter", jsonLetter(l))
		if l != nil {
			e.hear("a letter", l.Reason+l.Stack+string(l.Event.Data))
		}
	}
	check(letters.Close())
	e.json("Snapshot", bus.Debugger().Snapshot())
	srv.stop() // what is published now is in the spool
	testkit.Until(t, scriptPatience, func() bool { return !bus.Debugger().Snapshot().Transport.Connected })
	check(one("order.placed", "spooled"))
	e.error("live, away", one("cart.seen", "away"))
	e.contents(spool, nil)
	e.json("Snapshot", bus.Debugger().Snapshot())
	srv.start()
	for id := ""; id != "spooled"; {
		select {
		case id = <-handled:
		case <-ctx.Done():
			t.Fatal("what was in the spool did not come")
		}
	}
	n := 0
	for ev := range events {
		e.json("a watched event", ev)
		if n++; n == 5 {
			break
		}
	}
	e.json("Snapshot", bus.Debugger().Snapshot())
	check(bus.Drain(ctx))
	e.error("closed", one("order.placed", "late"))
}

// refuse has credentials refused, hosts not answer, and brokers have no JetStream.
func (e *ears) refuse(t *testing.T, w way, host, spool string) {
	t.Helper()
	nobody := testkit.FreeAddr(t)
	for where, url := range map[string]string{"refused credentials": w.wrong(host), "nobody listens": w.url(nobody), "no such host": w.url("host.invalid:4222"),
		"no host": w.url(""), "a bad port": w.url("127.0.0.1:99999"), "a second": w.url(nobody + "," + host)} {
		for _, dir := range []string{"", spool} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			bus, err := tidings.Open(ctx, url, tidings.Options{App: "shop", Logger: e.log(), SpoolDir: dir,
				Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
			e.error(where, err)
			if bus != nil {
				e.json("Snapshot, "+where, bus.Debugger().Snapshot())
				e.error(where, bus.Close())
			}
			_, err = natsbus.OpenAdmin(ctx, url, adapter.Config{Logger: e.log()})
			e.error(where, err)
			cancel()
		}
	}
}

// misspell puts every mistake at every place of a URL.
func (e *ears) misspell(url string) {
	for i := range len(url) + 1 {
		for _, s := range []string{"?", "%", "%zz", "/", "//", ":", "#", "&", " ", "\x00", "\n", "=", "://", "[", "]", ",", ";", "?manage=", "&nonsense=1", "?x=y&"} {
			target, err := natsbus.ParseTarget(url[:i] + s + url[i:])
			e.error(fmt.Sprintf("a URL with %q at %d", s, i), err)
			if target != nil {
				e.hear("a target", fmt.Sprintf("%v %+v %#v %s", target, target, target, target.Servers()))
			}
		}
		if i < len(url) && url[i] != '@' { // without that nobody knows where a host begins
			_, err := natsbus.ParseTarget(url[:i] + url[i+1:])
			e.error(fmt.Sprintf("a URL without its character %d", i), err)
		}
		_, err := natsbus.ParseTarget(url[:i])
		if !strings.Contains(url[i:], "@") || !strings.Contains(url, "@") {
			e.error(fmt.Sprintf("a URL cut at %d", i), err)
		}
	}
}
