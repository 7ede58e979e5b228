package natsbus

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const urlShape = "a NATS URL looks like nats://host:4222, nats://token@host:4222 or nats://host:4222?token-file=PATH"

// An address is a parsed transport URL. It holds secrets: only public may be
// shown.
type address struct {
	servers   []string // scheme://host:port, without secrets
	public    string   // the same joined, for messages
	user      string
	password  string
	token     string
	tokenFile string
	creds     string
	ca        string
	settings  Settings
	manage    bool // change the stream to settings
	ackWait   time.Duration
	form      form // of what is written
	loopback  bool // every server is on this machine
}

// parseURL takes a transport URL apart. Its errors never repeat the part that
// may hold a secret.
func parseURL(raw string) (*address, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || (scheme != "nats" && scheme != "tls") {
		return nil, errors.New("natsbus: the URL does not begin with nats:// or tls://: " + urlShape)
	}
	rest, query, _ := strings.Cut(rest, "?")
	a := &address{}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if err := a.userinfo(rest[:i]); err != nil {
			return nil, err
		}
		rest = rest[i+1:]
	}
	if err := a.query(query); err != nil {
		return nil, err
	}
	return a, a.hosts(scheme, strings.TrimSuffix(rest, "/"))
}

func (a *address) userinfo(s string) error {
	user, password, both := strings.Cut(s, ":")
	u, err1 := url.PathUnescape(user)
	p, err2 := url.PathUnescape(password)
	if err1 != nil || err2 != nil {
		return errors.New("natsbus: the URL's credentials are not percent-encoded properly: write % as %25, @ as %40, : as %3A")
	}
	if both {
		a.user, a.password = u, p
	} else {
		a.token = u
	}
	return nil
}

func (a *address) query(s string) error {
	q, err := url.ParseQuery(s)
	if err != nil {
		return errors.New("natsbus: the URL's part after ? cannot be read: " + urlShape)
	}
	for k, v := range q {
		if err := a.parameter(k, v[0]); err != nil {
			return fmt.Errorf("natsbus: the URL's part after ?: %w", err)
		}
	}
	if a.tokenFile != "" && (a.token != "" || a.user != "") {
		return errors.New("natsbus: the URL holds credentials and names a token-file; use one of them")
	}
	return nil
}

var parameters = append([]string{"token-file", "creds", "ca", "manage", "ack-wait", "wire"}, settingKeys...)

func (a *address) parameter(key, value string) (err error) {
	switch key {
	case "token-file":
		a.tokenFile = value
	case "creds":
		a.creds = value
	case "ca":
		a.ca = value
	case "manage":
		if a.manage, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("manage is %q: want true or false", value)
		}
	case "ack-wait":
		if a.ackWait, err = time.ParseDuration(value); err != nil || a.ackWait < minAckWait {
			return fmt.Errorf("ack-wait is %q: want a duration of at least %v", value, minAckWait)
		}
	case "wire":
		switch value {
		case "structured":
			a.form = structured
		case "binary":
			a.form = binary
		default:
			return fmt.Errorf("wire is %q: want structured or binary", value)
		}
	default:
		if !slices.Contains(settingKeys, key) {
			return unknownKey(key, parameters)
		}
		return a.settings.Set(key, value)
	}
	return nil
}

func (a *address) hosts(scheme, s string) error {
	a.loopback = true
	for h := range strings.SplitSeq(s, ",") {
		if h == "" || strings.ContainsAny(h, "/ ") {
			return errors.New("natsbus: the URL has no host, or one that cannot be read: " + urlShape)
		}
		host, port, err := net.SplitHostPort(h)
		if err != nil {
			host, port = strings.Trim(h, "[]"), "4222"
		}
		a.loopback = a.loopback && isLoopback(host)
		a.servers = append(a.servers, scheme+"://"+net.JoinHostPort(host, port))
	}
	a.public = strings.Join(a.servers, ",")
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// readToken reads the file that holds a token.
func readToken(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("natsbus: token-file: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("natsbus: token-file %s can be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("natsbus: token-file: %w", err)
	}
	tok := strings.TrimSpace(string(b))
	if tok == "" {
		return "", fmt.Errorf("natsbus: token-file %s is empty", path)
	}
	return tok, nil
}

// auth returns the options that carry the credentials. complain is told when
// the token file cannot be read at a later reconnect.
func (a *address) auth(complain func(error)) ([]nats.Option, error) {
	var opts []nats.Option
	switch {
	case a.user != "":
		opts = append(opts, nats.UserInfo(a.user, a.password))
	case a.token != "":
		opts = append(opts, nats.Token(a.token))
	case a.tokenFile != "":
		if _, err := readToken(a.tokenFile); err != nil {
			return nil, err
		}
		// Read at each connect: a hub that was set up anew has another token.
		opts = append(opts, nats.TokenHandler(func() string {
			tok, err := readToken(a.tokenFile)
			if err != nil {
				complain(err)
			}
			return tok
		}))
	}
	if a.creds != "" {
		if _, err := os.Stat(a.creds); err != nil {
			return nil, fmt.Errorf("natsbus: creds: %w", err)
		}
		opts = append(opts, nats.UserCredentials(a.creds))
	}
	if a.ca != "" {
		opts = append(opts, nats.RootCAs(a.ca))
	}
	return opts, nil
}
