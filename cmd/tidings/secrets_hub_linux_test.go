package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/hub"
)

// certificate makes one for this machine, and keeps its key in mind.
func (e *ears) certificate(t *testing.T, dir string) (cfg *tls.Config, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	cert, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	lines := strings.Split(string(text), "\n")
	e.keep("TLS key", lines[2]) // what comes before is the same in all keys
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pair, err := tls.X509KeyPair(public, text)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "hub.pem")
	if err := os.WriteFile(file, public, 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, file
}

// A hub at debug level says neither its token nor its key, whoever comes, and leaves no
// file that others can read.
func TestNoSecretComesOutOfAHub(t *testing.T) {
	e, dir := newEars(), t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // so that it hides nothing
		t.Fatal(err)
	}
	cfg, file := e.certificate(t, dir)
	h, err := hub.Start(t.Context(), hub.Options{Dir: filepath.Join(dir, "hub"), Addr: "127.0.0.1:0", Logger: e.log(), TLS: cfg})
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(dir, "hub", "token"))
	if err != nil {
		t.Fatal(err)
	}
	e.keep("the hub's token", strings.TrimSpace(string(token)))
	wrong := e.secret("a wrong token")
	e.hear("the hub's URL", h.URL())
	right := strings.Replace(h.URL(), "nats://", "tls://", 1)
	host := strings.TrimPrefix(strings.Split(right, "?")[0], "tls://")
	for _, u := range []string{right + "&ca=" + url.QueryEscape(file), right, h.URL(), "tls://" + wrong + "@" + host + "?ca=" + url.QueryEscape(file), "tls://" + host} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		bus, err := tidings.Open(ctx, u, tidings.Options{App: "shop", Logger: e.log(), Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
		e.error("Open", err)
		if bus != nil {
			if err := bus.Publish(ctx, "order.placed", 1); err != nil {
				t.Error(err)
			}
			e.json("Snapshot", bus.Debugger().Snapshot())
			e.error("Drain", bus.Drain(ctx))
		} else if u == right+"&ca="+url.QueryEscape(file) {
			t.Error(err)
		}
		cancel()
	}
	out, err := exec.Command("tidings", "doctor", "--url", right+"&ca="+url.QueryEscape(file)).CombinedOutput()
	if e.hear("tidings doctor", string(out)); err != nil || !strings.Contains(string(out), "warn     tls") || !strings.Contains(string(out), "TLS 1.3, TLS_") ||
		!strings.Contains(string(out), "renew the server's certificate") { // it ends in an hour
		t.Errorf("tidings doctor: %v\n%s", err, out)
	}
	e.tree(t, dir, "token", "hub.pem")
	if _, err := h.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	e.judge(t, 20)
}
