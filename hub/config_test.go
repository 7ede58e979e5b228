package hub

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

func configFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nats.conf")
	write(t, file, text)
	return file
}

// A configuration of nats-server is taken as it is, with accounts and all; what keeps
// events stays as it must be.
func TestConfigIsTaken(t *testing.T) {
	var log logBuffer
	dir := t.TempDir()
	h := mustStart(t, Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)), Config: configFile(t, `
listen: "127.0.0.1:-1"
server_name: one
max_payload: 2MB
jetstream { max_file_store: 1GB }
accounts { A { jetstream: enabled, users: [ { user: a, password: pw-of-a } ] } }
`)})
	if c := h.srv.JetStreamConfig(); !c.SyncAlways || c.MaxStore != 1<<30 || c.MaxMemory != DefaultMaxMemory || !strings.HasPrefix(c.StoreDir, dir) {
		t.Errorf("JetStream: %+v", c)
	}
	if h.srv.Name() != "one" {
		t.Error("the server's name is", h.srv.Name())
	}
	if strings.Contains(h.URL(), "?") {
		t.Error("the URL names credentials that the hub does not know:", h.URL())
	}
	if _, err := nats.Connect(h.URL()); err == nil {
		t.Error("anybody is let in")
	}
	b := run(t, strings.Replace(h.URL(), "nats://", "nats://a:pw-of-a@", 1), "shop", tidings.Options{Routes: durable("order.>")})
	if err := b.Publish(within(t), "order.placed", make([]byte, 1500<<10)); err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), "pw-of-a") {
		t.Error("the password is in the log")
	}
}

// sync_interval that is given stays, and what it means is said.
func TestSyncIntervalIsSaid(t *testing.T) {
	var log logBuffer
	h := mustStart(t, Options{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil)), Config: configFile(t, `
port: -1
jetstream { sync_interval: 10s }`)})
	if h.srv.JetStreamConfig().SyncAlways || !strings.Contains(log.String(), "sync_interval") || !strings.Contains(log.String(), "10s") || !strings.Contains(log.String(), "lost if the power fails") {
		t.Errorf("sync always: %v; the log:\n%s", h.srv.JetStreamConfig().SyncAlways, log.String())
	}
	dial(t, h) // with the hub's own token
	log = logBuffer{}
	h = mustStart(t, Options{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil)), Config: configFile(t, `
port: -1
jetstream { sync_interval: always }`)})
	if !h.srv.JetStreamConfig().SyncAlways || strings.Contains(log.String(), "sync_interval") {
		t.Errorf("sync always: %v; the log:\n%s", h.srv.JetStreamConfig().SyncAlways, log.String())
	}
}

// What a configuration opens to other machines is refused unless that is meant, and
// then unless it asks who comes. The error names the listener.
func TestConfigExposesNothingByMistake(t *testing.T) {
	auth := "authorization { user: u, password: p }"
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	}
	inCluster := "server_name: a; "
	for name, c := range map[string]struct {
		config string
		expose bool
		want   []string // none: it starts
	}{
		"clients":               {`listen: "0.0.0.0:-1"`, false, []string{"listen of", "--expose"}},
		"clients, meant":        {`listen: "0.0.0.0:-1"`, true, nil},
		"clients, anybody":      {`listen: "0.0.0.0:-1"; authorization { users: [ {user: u, password: p} ] }; no_auth_user: u`, true, []string{"listen of", "anybody"}},
		"cluster":               {inCluster + `port: -1; cluster { name: c, port: ` + free() + ` }`, false, []string{"cluster of", "0.0.0.0", "--expose"}},
		"cluster, anybody":      {inCluster + `port: -1; cluster { name: c, port: ` + free() + ` }`, true, []string{"cluster of", "anybody"}},
		"cluster on loopback":   {inCluster + `port: -1; cluster { name: c, listen: "127.0.0.1:` + free() + `", routes: ["nats://127.0.0.1:1"] }`, false, nil},
		"leafnodes":             {`port: -1; leafnodes { port: ` + free() + ` }`, false, []string{"leafnodes of", "--expose"}},
		"leafnodes, meant":      {`port: -1; leafnodes { port: ` + free() + ` }; ` + auth, true, nil},
		"gateway, anybody":      {`port: -1; gateway { name: g, port: ` + free() + ` }`, true, []string{"gateway of", "anybody"}},
		"websocket":             {`port: -1; websocket { port: ` + free() + `, no_tls: true }`, false, []string{"websocket of", "--expose"}},
		"websocket, anybody":    {`port: -1; websocket { port: ` + free() + `, no_tls: true, no_auth_user: u }; authorization { users: [ {user: u, password: p} ] }`, true, []string{"websocket of", "anybody"}},
		"mqtt":                  {`server_name: m; port: -1; mqtt { port: ` + free() + ` }`, false, []string{"mqtt of", "--expose"}},
		"monitoring":            {`port: -1; http: "0.0.0.0:` + free() + `"; ` + auth, true, []string{"http of", "no password"}},
		"monitoring, port only": {`port: -1; http_port: ` + free(), false, nil},
		"profiling":             {`listen: "0.0.0.0:-1"; prof_port: ` + free() + `; ` + auth, true, []string{"prof_port of", "no password"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := Start(t.Context(), Options{Dir: t.TempDir(), Logger: quiet(), Expose: c.expose, Config: configFile(t, c.config)})
			if err == nil {
				mustStop(t, h)
			}
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, c.want...)
		})
	}
}

func TestMistakesInConfig(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		o      Options
		want   []string
	}{
		"syntax":       {"port: 4222\nauthorization {", Options{}, []string{"nats.conf"}},
		"unknown key":  {"port: -1\n\nprot: 4222", Options{}, []string{"nats.conf:3", "prot"}},
		"wrong value":  {"port: -1\nmax_payload: never", Options{}, []string{"nats.conf:2"}},
		"store_dir":    {`port: -1; jetstream { store_dir: "/elsewhere" }`, Options{}, []string{"store_dir", "/elsewhere", "leave it out"}},
		"two listens":  {`listen: "127.0.0.1:-1"`, Options{Addr: "127.0.0.1:0"}, []string{"Options.Addr", "one place"}},
		"two payloads": {`port: -1; max_payload: 1000`, Options{MaxPayload: 2000}, []string{"Options.MaxPayload", "max_payload"}},
		"two stores":   {`port: -1; jetstream { max_file_store: 1GB }`, Options{MaxStore: 2000}, []string{"Options.MaxStore"}},
		"two monitors": {`port: -1; http_port: 9999`, Options{Monitor: "127.0.0.1:0"}, []string{"Options.Monitor"}},
		"two users":    {`port: -1; authorization { user: u, password: p }`, Options{Users: usersFile(t, "a may publish b.c")}, []string{"Options.Users", "authorization"}},
		"no file":      {"-", Options{}, []string{"none.conf"}},
	} {
		c.o.Dir, c.o.Logger, c.o.Config = t.TempDir(), quiet(), configFile(t, c.config)
		if c.config == "-" {
			c.o.Config = "none.conf"
		}
		h, err := Start(t.Context(), c.o)
		if err == nil {
			mustStop(t, h)
			t.Errorf("%s: no error", name)
			continue
		}
		wantError(t, err, c.want...)
	}
}

func TestLimits(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), MaxStore: 1 << 30, MaxMemory: 64 << 20, MaxPayload: 4000, MaxConnections: 2})
	if c := h.srv.JetStreamConfig(); c.MaxStore != 1<<30 || c.MaxMemory != 64<<20 {
		t.Errorf("JetStream: %+v", c)
	}
	nc := dial(t, h)
	if nc.MaxPayload() != 4000 {
		t.Error("the largest message has", nc.MaxPayload())
	}
	dial(t, h)
	token := nats.Token(strings.TrimSpace(mustRead(t, filepath.Join(h.dir.path, "token"))))
	if nc, err := nats.Connect("nats://"+h.addr, token); err == nil {
		nc.Close()
		t.Error("a third client is let in")
	}
	for _, o := range []Options{{MaxPayload: -1}, {MaxPayload: 1 << 30}, {MaxConnections: -1}} {
		o.Dir, o.Logger = t.TempDir(), quiet()
		_, err := Start(t.Context(), o)
		wantError(t, err, "Options.Max")
	}
}

// Reload takes users that came and went, and refuses what cannot change, with all as it
// was before.
func TestReload(t *testing.T) {
	users := usersFile(t, "shop may publish order.>\nbilling may subscribe order.>")
	h := mustStart(t, Options{Dir: t.TempDir(), Users: users})
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{})
	billing := run(t, urlOf(t, h, "billing"), "billing", tidings.Options{})

	write(t, users, "shop may publish order.>, cart.>\naudit may subscribe order.>")
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	run(t, urlOf(t, h, "audit"), "audit", tidings.Options{})
	testkit.Until(t, patience, func() bool {
		return strings.Contains(billing.told(), "refused the credentials") && strings.Contains(billing.told(), "users file")
	})
	if err := shop.Publish(within(t), "cart.added", 1); err != nil {
		t.Error(err)
	}

	write(t, users, "nonsense")
	wantError(t, h.Reload(), users, "nothing was changed")
	if n := len(h.Users()); n != 3 {
		t.Errorf("%d users after a failed reload", n)
	}

	write(t, users, "shop may publish order.>\nbilling may subscribe order.>")
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool { return billing.Debugger().Snapshot().Transport.Connected })
}

// comesBack has a hub read its files again, which cuts off a process that reads them, too.
func comesBack(t *testing.T, h *Hub, p *process) {
	t.Helper()
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool {
		s := p.Debugger().Snapshot().Transport
		return s.Connected && s.Disconnects == 1
	})
	if err := p.Publish(within(t), "order.placed", 1); err != nil {
		t.Error(err)
	}
}

// A secret that is removed is made anew by a reload; who has the old one is cut off, and
// who reads the file goes on.
func TestSecretRotates(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Users: usersFile(t, "shop may publish order.>")})
	shop := run(t, urlOf(t, h, "shop"), "shop", tidings.Options{Routes: durable("order.>")})
	file := h.dir.userFile("shop")
	_, old, _ := strings.Cut(strings.TrimSpace(mustRead(t, file)), ":")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	comesBack(t, h, shop)
	if nc, err := nats.Connect("nats://"+h.addr, nats.UserInfo("shop", old)); err == nil {
		nc.Close()
		t.Error("the old secret is let in")
	}
	if shop.told() != "" {
		t.Error(shop.told())
	}
}

// Another token is taken by a reload: who has the old one is cut off, and who reads the
// file goes on.
func TestTokenRotates(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir()})
	shop := run(t, h.URL(), "shop", tidings.Options{Routes: durable("order.>")})
	old := strings.TrimSpace(mustRead(t, h.dir.tokenFile()))
	if err := os.WriteFile(h.dir.tokenFile(), []byte("a-token-that-somebody-chose"), 0o600); err != nil {
		t.Fatal(err)
	}
	comesBack(t, h, shop)
	if nc, err := nats.Connect("nats://"+h.addr, nats.Token(old)); err == nil {
		nc.Close()
		t.Error("the old token is let in")
	}
}

// A configuration of nats-server is read again, too.
func TestReloadOfConfig(t *testing.T) {
	file := configFile(t, "port: -1; max_payload: 1000; authorization { user: u, password: p }")
	h := mustStart(t, Options{Dir: t.TempDir(), Config: file})
	write(t, file, "port: -1; max_payload: 3000; authorization { user: u, password: p }")
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(h.URL(), nats.UserInfo("u", "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if nc.MaxPayload() != 3000 {
		t.Errorf("after a reload the largest message has %d bytes", nc.MaxPayload())
	}
	write(t, file, fmt.Sprintf("port: -1; jetstream { max_file_store: %d }; authorization { user: u, password: p }", 1<<20))
	wantError(t, h.Reload(), "decreasing", "restart")
	write(t, file, "port: -1; http: \"0.0.0.0:1\"; authorization { user: u, password: p }")
	wantError(t, h.Reload(), "http of", "nothing was changed")
}
