package natsbus_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

func secretFile(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	rewrite(t, file, content)
	return file
}

func rewrite(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func userPass(name, password string) func(*server.Options) {
	return func(o *server.Options) { o.Users = []*server.User{{Username: name, Password: password}} }
}

// rotated goes through a rotation of credentials: give puts the first or second secret
// where the client finds it, allow has the server take it.
func rotated(t *testing.T, srv *testkit.Broker, url, wayOut string, give func(second bool), allow func(second bool) func(*server.Options)) {
	t.Helper()
	var log logged
	a, err := natsbus.Open(within(t), url, log.config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	got := make(chan adapter.Delivery, 10)
	subscribe(t, a, adapter.Spec{Pattern: "order.>", Group: "g", Deliver: func(d adapter.Delivery) { got <- d }})
	works := func() {
		t.Helper()
		publish(t, a, adapter.Live, "id", "order.placed")
		receive(t, got)
	}
	works()

	// Rotated: the new secret is taken by itself.
	give(true)
	srv.Change(allow(true))
	testkit.Until(t, patience, func() bool { s := a.Stats(); return s.Connected && s.Disconnects == 1 })
	works()
	if log.has("refused") {
		t.Error("the new secret was refused")
	}

	// Revoked: that is told, with the way out.
	srv.Change(allow(false))
	testkit.Until(t, patience, func() bool { return log.has("refused the credentials: " + wayOut) })
	if a.Stats().Connected {
		t.Error("it is connected though it is revoked")
	}

	// Allowed again: healed.
	srv.Change(allow(true))
	testkit.Until(t, patience, func() bool { return a.Stats().Connected })
	works()
	log.clean(t, errors.New("none"))
}

func TestUserFileRotates(t *testing.T) {
	first, second := "shop:"+secret+"-first", "shop:"+secret+"-second"
	file := secretFile(t, "shop", first)
	srv := testkit.Server(t, userPass("shop", secret+"-first"))
	rotated(t, srv, srv.URL()+"?user-file="+file, "put the user's present secret into "+file,
		func(bool) { rewrite(t, file, second) },
		func(is bool) func(*server.Options) {
			if is {
				return userPass("shop", secret+"-second")
			}
			return userPass("shop", "another")
		})
}

func seed(t *testing.T) (seed, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	s, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return string(s), public
}

func TestNkeyRotates(t *testing.T) {
	seed1, public1 := seed(t)
	seed2, public2 := seed(t)
	_, other := seed(t)
	file := secretFile(t, "seed", seed1+"\n")
	only := func(public string) func(*server.Options) {
		return func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} }
	}
	srv := testkit.Server(t, only(public1))
	rotated(t, srv, srv.URL()+"?nkey="+file+"&inbox=_INBOX.shop", "put the seed of a key that is allowed into "+file,
		func(bool) { rewrite(t, file, seed2) },
		func(is bool) func(*server.Options) {
			if is {
				return only(public2)
			}
			return only(other)
		})
}

func TestTokenFileRotates(t *testing.T) {
	file := secretFile(t, "token", secret)
	token := func(s string) func(*server.Options) { return func(o *server.Options) { o.Authorization = s } }
	srv := testkit.Server(t, token(secret))
	rotated(t, srv, srv.URL()+"?token-file="+file, "put the present token into "+file,
		func(bool) { rewrite(t, file, secret+"2") },
		func(is bool) func(*server.Options) {
			if is {
				return token(secret + "2")
			}
			return token("another")
		})
}

// A mistake in a file is an error of Open that names it, and tells nothing of it.
func TestMistakesInCredentials(t *testing.T) {
	good, _ := seed(t)
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	ofAccount, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	readable := secretFile(t, "seed", good)
	if err := os.Chmod(readable, 0o640); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"user-file=" + secretFile(t, "nouser", secret):                   "NAME:PASSWORD",
		"user-file=" + secretFile(t, "empty", "\n"):                      "is empty",
		"user-file=" + secretFile(t, "lines", "a:"+secret+"\nb:"+secret): "one line",
		"user-file=/none":  "/none",
		"nkey=" + readable: "chmod 600",
		"nkey=" + secretFile(t, "noseed", "SU"+secret):        "begins with SU",
		"nkey=" + secretFile(t, "account", string(ofAccount)): "of a user",
		"nkey=x&token-file=y":                                 "several kinds (nkey, token-file)",
		"cert=x":                                              "only one of cert and key",
		"cert=/none&key=/none":                                "cert: ",
		"ca=" + secretFile(t, "ca", "x"):                      "in PEM form",
		"inbox=mine":                                          "_INBOX.",
		"inbox=_INBOX.>":                                      "_INBOX.",
		"usr-file=x":                                          `did you mean "user-file"`,
	} {
		var log logged
		_, err := natsbus.Open(within(t), "nats://127.0.0.1:1?"+query, log.config())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want one with %q", query, err, want)
			continue
		}
		if strings.Contains(err.Error(), good) || strings.Contains(err.Error(), string(ofAccount)) {
			t.Error("the seed was told")
		}
		log.clean(t, err)
	}
}

// A server that wants to see a certificate is shown that of the files, and one that is
// renewed at the next connection; without one the error says what to do.
func TestClientCertificates(t *testing.T) {
	ca := testkit.NewCA(t, "one")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.Issue(cert, key)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	b, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(b)
	srv := testkit.Server(t, func(o *server.Options) {
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
		o.TLSVerify, o.TLSTimeout = true, 20
	})
	var log logged
	url := strings.Replace(srv.URL(), "nats://", "tls://", 1)
	for query, want := range map[string]string{"": "ca=PATH (now none)", "?ca=" + ca.File: "cert=PATH and key=PATH (now none)"} {
		if a, err := natsbus.Open(within(t), url+query, log.config()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want one with %q", query, err, want)
			if err == nil {
				_ = a.Close()
			}
		}
	}
	a, err := natsbus.Open(within(t), url+"?ca="+ca.File+"&cert="+cert+"&key="+key, log.config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	rewrite(t, key, "no key")
	srv.Restart()
	testkit.Until(t, patience, func() bool { return log.has("are no pair") && log.has(key) })
	ca.Issue(cert, key)
	testkit.Until(t, patience, func() bool { return a.Stats().Connected })
}
