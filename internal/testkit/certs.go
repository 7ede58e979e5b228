package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A CA signs certificates for tests. Its own is in File.
type CA struct {
	File string

	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

// NewCA makes one.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	ca := &CA{t: t, File: filepath.Join(t.TempDir(), "ca.pem")}
	ca.cert = &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, key := ca.sign(ca.cert)
	ca.key = key
	WritePEM(t, ca.File, "CERTIFICATE", der)
	var err error
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca
}

// Issue writes a certificate for loopback, of a server and a client, and its key. It
// returns the certificate's serial number.
func (ca *CA) Issue(cert, key string) (serial int64) {
	ca.t.Helper()
	der, k := ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	WritePEM(ca.t, cert, "CERTIFICATE", der)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		ca.t.Fatal(err)
	}
	WritePEM(ca.t, key, "PRIVATE KEY", der)
	return ca.last
}

func (ca *CA) sign(c *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	ca.t.Helper()
	ca.last++
	c.SerialNumber = big.NewInt(ca.last)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	parent, by := ca.cert, ca.key
	if by == nil {
		by = key // its own
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		ca.t.Fatal(err)
	}
	return der, key
}

// WritePEM writes a file of mode 0600.
func WritePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
