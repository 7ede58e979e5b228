package hub

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

type pair struct{ cert, key string }

func newPair(t *testing.T, ca *testkit.CA) (p pair, serial int64) {
	dir := t.TempDir()
	p = pair{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	return p, ca.Issue(p.cert, p.key)
}

// shown is the serial number of the certificate that a new connection gets to see.
func shown(t *testing.T, h *Hub, opts ...nats.Option) int64 {
	t.Helper()
	nc := dial(t, h, opts...)
	defer nc.Close()
	state, err := nc.TLSConnectionState()
	if err != nil {
		t.Fatal(err)
	}
	return state.PeerCertificates[0].SerialNumber.Int64()
}

// A certificate that was renewed, by another CA even, is shown to new connections; one
// that is broken is not, and said to be. Clients that trust both CAs notice nothing.
func TestCertificateRotates(t *testing.T) {
	one, two := testkit.NewCA(t, "one"), testkit.NewCA(t, "two")
	two.Issue(filepath.Join(t.TempDir(), "c"), filepath.Join(t.TempDir(), "k")) // so that serials differ
	p, first := newPair(t, one)
	both := filepath.Join(t.TempDir(), "both.pem")
	write(t, both, mustRead(t, one.File)+mustRead(t, two.File))
	var log logBuffer
	h := mustStart(t, Options{Dir: t.TempDir(), TLSCert: p.cert, TLSKey: p.key, Users: usersFile(t, "shop may publish order.>; may subscribe order.>"),
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	url := urlOf(t, h, "shop")
	if !strings.HasPrefix(url, "tls://") {
		t.Error("the URL is", url)
	}
	roots := nats.RootCAs(both)
	if got := shownTo(t, h, "shop", roots); got != first {
		t.Errorf("certificate %d is shown, want %d", got, first)
	}
	write(t, p.cert, "broken")
	if got := shownTo(t, h, "shop", roots); got != first || !strings.Contains(log.String(), p.cert) {
		t.Errorf("with a broken file %d is shown, and the log says %s", got, log.String())
	}
	bus := run(t, url+"&ca="+both, "shop", tidings.Options{Routes: durable()})
	second := two.Issue(p.cert, p.key)
	if got := shownTo(t, h, "shop", roots); got != second {
		t.Errorf("certificate %d is shown, want %d", got, second)
	}
	connz, err := h.srv.Connz(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range connz.Conns {
		if strings.HasPrefix(c.Name, "shop/") {
			if err := h.srv.DisconnectClientByID(c.Cid); err != nil {
				t.Fatal(err)
			}
		}
	}
	testkit.Until(t, patience, func() bool {
		s := bus.Debugger().Snapshot().Transport
		return s.Connected && s.Disconnects == 1
	})
	if bus.told() != "" {
		t.Error(bus.told())
	}
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	third := one.Issue(p.cert, p.key)
	if got := shownTo(t, h, "shop", roots); got != third {
		t.Errorf("after a reload certificate %d is shown, want %d", got, third)
	}
}

// shownTo is shown, for a user.
func shownTo(t *testing.T, h *Hub, user string, opts ...nats.Option) int64 {
	t.Helper()
	name, secret, _ := strings.Cut(strings.TrimSpace(mustRead(t, h.dir.userFile(user))), ":")
	nc, err := nats.Connect("nats://"+h.addr, append(opts, nats.UserInfo(name, secret))...)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	state, err := nc.TLSConnectionState()
	if err != nil {
		t.Fatal(err)
	}
	return state.PeerCertificates[0].SerialNumber.Int64()
}

// With TLSCA nobody comes in who has no certificate of it.
func TestClientsMustShowACertificate(t *testing.T) {
	ca, other := testkit.NewCA(t, "ours"), testkit.NewCA(t, "other")
	server, _ := newPair(t, ca)
	good, _ := newPair(t, ca)
	bad, _ := newPair(t, other)
	h := mustStart(t, Options{Dir: t.TempDir(), TLSCert: server.cert, TLSKey: server.key, TLSCA: ca.File})
	shown(t, h, nats.RootCAs(ca.File), nats.ClientCert(good.cert, good.key))
	token := nats.Token(strings.TrimSpace(mustRead(t, filepath.Join(h.dir.path, "token"))))
	for name, opt := range map[string]nats.Option{"no certificate": nats.Name("x"), "one of another CA": nats.ClientCert(bad.cert, bad.key)} {
		if nc, err := nats.Connect("nats://"+h.addr, token, nats.RootCAs(ca.File), opt); err == nil {
			nc.Close()
			t.Errorf("%s: it was let in", name)
		}
	}
}

func TestMistakesWithCertificates(t *testing.T) {
	ca := testkit.NewCA(t, "ca")
	p, _ := newPair(t, ca)
	q, _ := newPair(t, ca)
	open, _ := newPair(t, ca)
	if err := os.Chmod(open.key, 0o604); err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(t.TempDir(), "junk")
	write(t, junk, "junk")
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"no key":       {Options{TLSCert: p.cert}, []string{"Options.TLSKey"}},
		"CA alone":     {Options{TLSCA: ca.File}, []string{"Options.TLSCert"}},
		"missing file": {Options{TLSCert: "/none.pem", TLSKey: p.key}, []string{"Options.TLSCert", "/none.pem"}},
		"no pair":      {Options{TLSCert: p.cert, TLSKey: q.key}, []string{p.cert, q.key, "no pair"}},
		"junk":         {Options{TLSCert: junk, TLSKey: p.key}, []string{junk}},
		"junk CA":      {Options{TLSCert: p.cert, TLSKey: p.key, TLSCA: junk}, []string{junk, "PEM"}},
		"key for all":  {Options{TLSCert: open.cert, TLSKey: open.key}, []string{open.key, "chmod 600"}},
		"twice":        {Options{TLSCert: p.cert, TLSKey: p.key, TLS: &tls.Config{}}, []string{"Options.TLS"}},
	} {
		c.o.Dir, c.o.Addr, c.o.Logger = t.TempDir(), "127.0.0.1:0", quiet()
		h, err := Start(t.Context(), c.o)
		if err == nil {
			mustStop(t, h)
			t.Errorf("%s: no error", name)
			continue
		}
		wantError(t, err, c.want...)
	}
}
