package natsbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// entry says why the server lets this process not in, once for each cause and outage:
// nats.go tries on for ever, and tells of some causes not at all, of others at each try.
type entry struct {
	c    *conn
	mu   sync.Mutex
	said map[string]bool
}

func (e *entry) tell(err error) {
	e.mu.Lock()
	again := e.said[err.Error()]
	if e.said == nil {
		e.said = map[string]bool{}
	}
	e.said[err.Error()] = true
	e.mu.Unlock()
	if !again {
		e.c.report(err)
	}
}

// over: a connection is there.
func (e *entry) over() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.said = nil
}

// look is called between two tries.
func (e *entry) look(nc *nats.Conn) {
	if nc == nil {
		return
	}
	if err := nc.LastError(); refusesLogin(err) || tlsError(err) || errors.Is(err, nats.ErrMaxConnectionsExceeded) || errors.Is(err, nats.ErrMaxAccountConnectionsExceeded) {
		e.tell(fmt.Errorf("%w: it is tried again and again", e.c.connectError(err)))
	}
}

// tlsError: what the other end says of a handshake has no type of its own.
func tlsError(err error) bool {
	return err != nil && (errors.Is(err, nats.ErrTLS) || errors.Is(err, nats.ErrSecureConnRequired) || strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "))
}

// connectError says what was tried, and the way out.
func (c *conn) connectError(err error) error {
	at := c.addr.public
	var op *net.OpError
	what := "connect to " + at
	switch {
	case refusesLogin(err):
		what = "the server at " + at + " refused the credentials"
	case tlsError(err):
		what = "there is no TLS with the server at " + at
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrTimeout), errors.As(err, &op):
		what = "no NATS server answers at " + at
	case errors.Is(err, context.DeadlineExceeded):
		what = "the server at " + at + " does not answer"
	}
	return fmt.Errorf("natsbus: %s: %s: %w", what, c.addr.wayOut(err), err)
}

// wayOut is what to do about a connection that does not come.
func (a *address) wayOut(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case refusesLogin(err):
		return a.wayIn()
	case tlsError(err):
		return fmt.Sprintf("name the file of the CA that has signed its certificate with ca=PATH%s, the host that it is for, and if the server wants to see one of this client, cert=PATH and key=PATH%s", now(a.ca), now(a.cert))
	case errors.As(err, &dns):
		return "correct the host name, or the name server"
	case errors.Is(err, nats.ErrTimeout), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, nats.ErrStaleConnection), errors.Is(err, context.DeadlineExceeded):
		return "something listens there and does not answer: look at the broker, and at firewalls between"
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, nats.ErrNoServers):
		return "nothing listens there: start the broker (tidings hub), or correct the URL"
	}
	return "look at the broker's log"
}

func now(file string) string { return " (now " + cmp.Or(file, "none") + ")" }

// wayIn is what to do about credentials that were refused.
func (a *address) wayIn() string {
	const hub = "; a hub lets in whom its users file names"
	switch {
	case a.userFile != "":
		return "put the user's present secret into " + a.userFile + " (it is in DIR/users of the hub)" + hub
	case a.tokenFile != "":
		return "put the present token into " + a.tokenFile + " (it is in DIR/token of the hub)"
	case a.nkey != "":
		return "put the seed of a key that is allowed into " + a.nkey + hub
	case a.creds != "":
		return "get new credentials into " + a.creds
	}
	return "correct those in the URL, or name a file that holds them with ?user-file=PATH or ?token-file=PATH"
}
