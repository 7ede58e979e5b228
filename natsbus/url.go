package natsbus

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings/internal/topic"
)

const urlShape = "a NATS URL looks like nats://host:4222, nats://token@host:4222, nats://host:4222?token-file=PATH or nats://host:4222?user-file=PATH"

// An address is a parsed transport URL. It holds secrets: only public may be
// shown.
type address struct {
	servers   []string // scheme://host:port, without secrets
	public    string   // the same joined, for messages
	user      string
	password  string
	token     string
	tokenFile string
	userFile  string // user:password
	nkey      string // file of the seed
	creds     string
	ca        string
	cert, key string // files of the client's certificate
	inbox     string // where answers come; empty: as the user is called
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
		if strings.Contains(query, "@") { // what is repeated would be a part of the secret
			return nil, errors.New("natsbus: the URL's part after ? cannot be read, and has an @ in it: in a password or token write ? as %3F, elsewhere @ as %40")
		}
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
	return a.checkCredentials()
}

var parameters = append([]string{"token-file", "user-file", "nkey", "creds", "ca", "cert", "key", "inbox", "manage", "ack-wait", "wire"}, settingKeys...)

func (a *address) parameter(key, value string) (err error) {
	switch key {
	case "token-file":
		a.tokenFile = value
	case "user-file":
		a.userFile = value
	case "nkey":
		a.nkey = value
	case "creds":
		a.creds = value
	case "ca":
		a.ca = value
	case "cert":
		a.cert = value
	case "key":
		a.key = value
	case "inbox":
		if a.inbox = value; topic.Check("x."+value) != nil || !strings.HasPrefix(value, "_INBOX.") {
			return fmt.Errorf("inbox is %q: want _INBOX. and the name that this user has in the users file of its hub", value)
		}
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
