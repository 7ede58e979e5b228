package natsbus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Every file of credentials is read at each connect: one that was rotated is taken at
// the next reconnection, and a broken one is reported while the old connection is
// still up, or the tries go on.

// checkCredentials refuses what contradicts itself.
func (a *address) checkCredentials() error {
	var named []string
	for name, is := range map[string]bool{"user and password or a token before the host": a.user != "" || a.token != "",
		"token-file": a.tokenFile != "", "user-file": a.userFile != "", "nkey": a.nkey != "", "creds": a.creds != ""} {
		if is {
			named = append(named, name)
		}
	}
	if len(named) > 1 {
		slices.Sort(named)
		return fmt.Errorf("natsbus: the URL holds credentials of several kinds (%s): use one of them", strings.Join(named, ", "))
	}
	if (a.cert == "") != (a.key == "") {
		return errors.New("natsbus: the URL names only one of cert and key: a client's certificate needs both files")
	}
	return nil
}

// readSecret reads a file that nobody else may read. what is its name in the URL.
func readSecret(what, path string) (string, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("natsbus: %s: %w: a hub writes it when it starts: start that (tidings hub), or correct the path in the URL", what, err)
	}
	if err != nil {
		return "", fmt.Errorf("natsbus: %s: %w", what, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("natsbus: %s %s can be read by others (mode %04o): chmod 600 it", what, path, st.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("natsbus: %s: %w", what, err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("natsbus: %s %s is empty", what, path)
	}
	return s, nil
}

// readUser reads a file that holds a name and a password.
func readUser(path string) (user, password string, err error) {
	s, err := readSecret("user-file", path)
	if err != nil {
		return "", "", err
	}
	user, password, ok := strings.Cut(s, ":")
	if !ok || user == "" || password == "" || strings.ContainsAny(s, "\r\n") {
		return "", "", fmt.Errorf("natsbus: user-file %s does not hold one line of NAME:PASSWORD", path)
	}
	return user, password, nil
}

// readNkey reads the seed of a user; whoever gets the pair has to wipe it.
func readNkey(path string) (nkeys.KeyPair, string, error) {
	s, err := readSecret("nkey", path)
	if err != nil {
		return nil, "", err
	}
	pair, err := nkeys.ParseDecoratedNKey([]byte(s))
	if err != nil { // the cause could hold a part of the seed
		return nil, "", fmt.Errorf("natsbus: nkey %s holds no seed: want one that begins with SU, as \"nk -gen user\" makes it", path)
	}
	public, err := pair.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		pair.Wipe()
		return nil, "", fmt.Errorf("natsbus: nkey %s holds no seed of a user: want one that begins with SU, as \"nk -gen user\" makes it", path)
	}
	return pair, public, nil
}

// credentials are those of one connection.
type credentials struct {
	a        *address
	complain func(error)               // of what cannot be read at a later connect
	nc       atomic.Pointer[nats.Conn] // once there is one
	public   string                    // nkey that was read first
}

// options are those that carry the credentials.
func (k *credentials) options() ([]nats.Option, error) {
	auth, user, err := k.auth()
	if err != nil {
		return nil, err
	}
	opts, err := k.tls()
	if err != nil {
		return nil, err
	}
	opts = append(opts, auth...)
	switch inbox := k.a.inbox; {
	case inbox != "":
		opts = append(opts, nats.CustomInboxPrefix(inbox))
	case user != "" && sanitize(user) == user: // it can be a token of a subject
		opts = append(opts, nats.CustomInboxPrefix(inboxOf(user)))
	}
	return opts, nil
}

// auth returns the user's name too, as its inbox is called, if it has one.
func (k *credentials) auth() (opts []nats.Option, user string, err error) {
	a := k.a
	switch {
	case a.user != "":
		return []nats.Option{nats.UserInfo(a.user, a.password)}, a.user, nil
	case a.token != "":
		return []nats.Option{nats.Token(a.token)}, "", nil
	case a.tokenFile != "":
		_, err := readSecret("token-file", a.tokenFile)
		return []nats.Option{nats.TokenHandler(func() string {
			token, err := readSecret("token-file", a.tokenFile)
			k.tell(err)
			return token
		})}, "", err
	case a.userFile != "":
		user, _, err := readUser(a.userFile)
		return []nats.Option{nats.UserInfoHandler(func() (string, string) {
			user, password, err := readUser(a.userFile)
			k.tell(err)
			return user, password
		})}, user, err
	case a.nkey != "":
		return k.nkeyAuth()
	case a.creds != "":
		if _, err := os.Stat(a.creds); err != nil {
			return nil, "", fmt.Errorf("natsbus: creds: %w", err)
		}
		return []nats.Option{nats.UserCredentials(a.creds)}, "", nil
	}
	return nil, "", nil
}

func (k *credentials) nkeyAuth() ([]nats.Option, string, error) {
	pair, public, err := readNkey(k.a.nkey)
	if err != nil {
		return nil, "", err
	}
	pair.Wipe()
	k.public = public
	return []nats.Option{nats.Nkey(public, func(nonce []byte) ([]byte, error) {
		pair, _, err := readNkey(k.a.nkey)
		if err != nil {
			k.tell(err)
			return nil, err
		}
		defer pair.Wipe()
		return pair.Sign(nonce)
	})}, public, nil
}

// beforeDial has nats.go present the public key of the seed that is in the file now:
// it takes the key as a string, once. It dials, and reads that string afterwards, on
// one goroutine that holds its lock.
func (k *credentials) beforeDial() {
	nc := k.nc.Load()
	if nc == nil || k.a.nkey == "" {
		return
	}
	if pair, public, err := readNkey(k.a.nkey); err == nil { // else the signature's turn fails, and says so
		pair.Wipe()
		nc.Opts.Nkey = public
	}
}

// tls are the files of certificates.
func (k *credentials) tls() ([]nats.Option, error) {
	a := k.a
	var opts []nats.Option
	if a.ca != "" {
		if _, err := readCA(a.ca); err != nil {
			return nil, err
		}
		opts = append(opts, nats.RootCAs(a.ca), func(o *nats.Options) error {
			o.RootCAsCB = func() (*x509.CertPool, error) {
				pool, err := readCA(a.ca)
				k.tell(err)
				return pool, err
			}
			return nil
		})
	}
	if a.cert != "" {
		if _, err := readPair(a.cert, a.key); err != nil {
			return nil, err
		}
		opts = append(opts, nats.ClientCert(a.cert, a.key), func(o *nats.Options) error {
			o.TLSCertCB = func() (tls.Certificate, error) {
				pair, err := readPair(a.cert, a.key)
				k.tell(err)
				return pair, err
			}
			return nil
		})
	}
	return opts, nil
}

func readCA(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("natsbus: ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("natsbus: ca %s holds no certificate in PEM form", path)
	}
	return pool, nil
}

func readPair(cert, key string) (tls.Certificate, error) {
	b, err := os.ReadFile(cert)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("natsbus: cert: %w", err)
	}
	k, err := readSecret("key", key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(b, []byte(k))
	if err != nil {
		return pair, fmt.Errorf("natsbus: cert %s and key %s are no pair in PEM form: %w", cert, key, err)
	}
	return pair, nil
}

func (k *credentials) tell(err error) {
	if err != nil {
		k.complain(err)
	}
}
