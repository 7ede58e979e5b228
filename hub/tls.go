package hub

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// tlsConfig is what clients must speak, nil for nothing.
func (o Options) tlsConfig(log *slog.Logger) (*tls.Config, error) {
	files := o.TLSCert != "" || o.TLSKey != "" || o.TLSCA != ""
	switch {
	case !files:
		return o.TLS, nil
	case o.TLS != nil:
		return nil, errors.New("Options.TLS is set, and so is Options.TLSCert, Options.TLSKey or Options.TLSCA: use one of them")
	case o.TLSCert == "" || o.TLSKey == "":
		return nil, errors.New("Options.TLSCert and Options.TLSKey must both be given: the certificate that clients are shown, and its key")
	}
	f := &certFiles{cert: o.TLSCert, key: o.TLSKey, ca: o.TLSCA, log: log}
	if err := f.load(); err != nil {
		return nil, err
	}
	c := f.now.Clone()
	c.GetConfigForClient = f.forClient
	return c, nil
}

// certFiles are files with certificates. They are read again when they change: one
// that was renewed is shown to new connections, those there are go on.
type certFiles struct {
	cert, key, ca string
	log           *slog.Logger

	mu   sync.Mutex
	now  *tls.Config
	read [3]stamp // of what now was made of
	seen [3]stamp // of what could not be used
}

// A stamp changes when a file does.
type stamp struct {
	size, modified int64
}

func stampOf(file string) stamp {
	st, err := os.Stat(file)
	if err != nil {
		return stamp{}
	}
	return stamp{st.Size(), st.ModTime().UnixNano()}
}

func (f *certFiles) stamps() [3]stamp {
	s := [3]stamp{stampOf(f.cert), stampOf(f.key)}
	if f.ca != "" {
		s[2] = stampOf(f.ca)
	}
	return s
}

// forClient is tls.Config.GetConfigForClient.
func (f *certFiles) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.stamps(); s != f.read && s != f.seen {
		if err := f.load(); err != nil {
			// A renewal may be half done: the next connection looks again.
			f.seen = s
			f.log.Error("hub: the new certificate cannot be used, clients are shown the one before: "+err.Error(), "cert", f.cert)
		} else {
			f.log.Info("hub: new connections are shown a new certificate", "cert", f.cert)
		}
	}
	return f.now, nil
}

// load reads the files. mu is held, or nobody else knows of f.
func (f *certFiles) load() error {
	s := f.stamps() // before reading: a change meanwhile is seen the next time
	if st, err := os.Stat(f.key); err == nil && st.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("Options.TLSKey %s can be read by everybody (mode %04o): chmod 600 it, and have a new one made if others may have read it", f.key, st.Mode().Perm())
	}
	cert, err := os.ReadFile(f.cert)
	if err != nil {
		return fmt.Errorf("cannot read Options.TLSCert: %w", err)
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return fmt.Errorf("cannot read Options.TLSKey: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("Options.TLSCert %s and Options.TLSKey %s are no pair in PEM form: %w", f.cert, f.key, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.ca != "" {
		b, err := os.ReadFile(f.ca)
		if err != nil {
			return fmt.Errorf("cannot read Options.TLSCA: %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !c.ClientCAs.AppendCertsFromPEM(b) {
			return fmt.Errorf("Options.TLSCA %s holds no certificate in PEM form", f.ca)
		}
	}
	f.now, f.read = c, s
	return nil
}
