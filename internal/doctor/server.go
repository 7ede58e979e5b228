package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// ofServer begins the names of checks that have the address of a server in them.
const ofServer = "server "

// client notes what this program is made of.
func (e *exam) client() {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	e.fact("client.nats.go", nats.Version)
	e.fact("client.go", runtime.Version())
	e.fact("client.platform", runtime.GOOS+"/"+runtime.GOARCH)
	e.ok("client", "tidings %s, nats.go %s, %s, %s/%s", version, nats.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// servers tries each server of the URL by itself, and keeps the connection to the first
// that lets us in.
func (e *exam) servers(ctx context.Context) {
	type failure struct{ name, do, found string }
	var failures []failure
	reached := 0
	var versions []string
	for _, server := range e.target.Servers() {
		u, err := url.Parse(server)
		if err != nil {
			continue // the URL was taken apart before
		}
		name := ofServer + u.Host
		began := time.Now()
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", u.Host)
		if err != nil {
			failures = append(failures, failure{name, "start one (tidings hub) or correct the URL; a firewall that drops packets looks like a timeout", fmt.Sprintf("no TCP connection: %v", err)})
			continue
		}
		tcp := time.Since(began)
		_ = conn.Close()
		nc, err := e.target.Connect(ctx, server, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // the default one prints
		if err != nil {
			failures = append(failures, failure{name, "do what the error says; if that is nothing, what listens there may be no nats-server", fmt.Sprintf("TCP in %v, but no NATS: %v", short(tcp), err)})
			continue
		}
		reached++
		versions = append(versions, nc.ConnectedServerVersion())
		e.ok(name, "%s, TCP in %v, round trip %v", nc.ConnectedServerName(), short(tcp), roundTrip(nc))
		if e.nc == nil {
			e.nc = nc
		} else {
			nc.Close()
		}
	}
	for _, f := range failures {
		if reached > 0 {
			e.warn(f.name, f.do, "%s; others of the URL answer", f.found)
		} else {
			e.fail(f.name, f.do, "%s", f.found)
		}
	}
	if slices.Sort(versions); len(slices.Compact(versions)) > 1 {
		e.warn("versions", "finish the upgrade: streams can do what the oldest server can", "the servers are of different versions: %s", strings.Join(slices.Compact(versions), ", "))
	}
}

// roundTrip is the shortest of a few.
func roundTrip(nc *nats.Conn) string {
	best := time.Duration(-1)
	for range 5 {
		if rtt, err := nc.RTT(); err == nil && (best < 0 || rtt < best) {
			best = rtt
		}
	}
	if best < 0 {
		return "unknown"
	}
	return short(best).String()
}

func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

// transport is what protects the way to the server, and who we are there.
func (e *exam) transport() {
	state, err := e.nc.TLSConnectionState()
	switch {
	case err == nil:
		e.certificate(state)
	case e.target.Loopback():
		e.fact("tls", "none")
		e.ok("tls", "none, and none is needed: every server of the URL is on this machine")
	default:
		e.fact("tls", "none")
		e.warn("tls", "have the server ask for TLS and use tls:// in the URL", "none: credentials and events can be read on the way")
	}
	kind := credentials(&e.nc.Opts)
	e.fact("authentication", kind)
	account := ""
	if e.user != nil && e.user.Account != "" {
		e.fact("account", e.user.Account)
		account = ", account " + e.user.Account
	}
	switch bare := e.target.Bare(); {
	case !e.nc.AuthRequired():
		e.warn("authentication", "have the server ask for a token, or for users", "the server lets anybody in")
	case bare != "":
		e.warn("authentication", "put it into a file that only you can read and use ?token-file=PATH or ?creds=PATH: other users see a command line in ps, and this user's programs the environment", "by %s%s; the URL itself holds %s", kind, account, bare)
	default:
		e.ok("authentication", "by %s%s", kind, account)
	}
}

// credentials says what kind they are of.
func credentials(o *nats.Options) string {
	switch {
	case o.UserJWT != nil:
		return "a JWT"
	case o.Nkey != "":
		return "an nkey"
	case o.UserInfo != nil:
		return "a user from a file"
	case o.User != "":
		return "user and password"
	case o.Token != "":
		return "a token"
	case o.TokenHandler != nil:
		return "a token from a file"
	}
	return "nothing"
}

const certificateWarning = 14 * 24 * time.Hour

func (e *exam) certificate(state tls.ConnectionState) {
	e.fact("tls", tls.VersionName(state.Version))
	found := fmt.Sprintf("%s, %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	if len(state.PeerCertificates) == 0 {
		e.ok("tls", "%s", found)
		return
	}
	end := state.PeerCertificates[0].NotAfter
	found += fmt.Sprintf(", certificate valid until %s", end.UTC().Format(time.RFC3339))
	if time.Until(end) < certificateWarning {
		e.warn("tls", "renew the server's certificate", "%s", found)
		return
	}
	e.ok("tls", "%s", found)
}

// features are what a server has to be of a version for.
var features = []struct {
	since []int
	what  string
}{
	{[]int{2, 11}, "streams that forget what has expired"},
	{[]int{2, 12}, "delayed events, and events stored together"},
	{[]int{2, 14}, "taking over at once from a process that was killed"},
	{[]int{2, 15, 2}, "one sync for events stored together"},
}

// oldest is the first version that publishing and consuming is tested with.
var oldest = []int{2, 10}

func (e *exam) version() {
	v := e.nc.ConnectedServerVersion()
	e.fact("server.version", v)
	var without []string
	for _, f := range features {
		if !isAtLeast(v, f.since...) {
			without = append(without, fmt.Sprintf("%s (%s)", f.what, dotted(f.since)))
		}
	}
	switch {
	case !isAtLeast(v, oldest...):
		e.fail("server version", "use nats-server "+dotted(oldest)+" or newer", "%s: nothing is tested with that", v)
	case without != nil:
		e.warn("server version", "use a newer nats-server, or do without", "%s, which lacks %s", v, strings.Join(without, "; "))
	default:
		e.ok("server version", "%s, which has all that Tidings makes use of", v)
	}
}

func dotted(version []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(version), " ", "."), "[]")
}

// smallPayload is a limit that events of usual size may meet.
const smallPayload = 64 << 10

func (e *exam) limits() {
	n := e.nc.MaxPayload()
	e.fact("server.max_payload", n)
	if n < smallPayload {
		e.warn("max_payload", "raise max_payload in the server's configuration, or keep large things elsewhere and publish where", "%d bytes: larger events are refused", n)
	} else {
		e.ok("max_payload", "%d bytes: larger events are refused", n)
	}
	if !e.nc.HeadersSupported() {
		e.fail("headers", "do not set no_header_support", "the server takes no headers, which durable events have")
	}
	v := e.varz
	if v == nil {
		e.skip("connections", "only the server's monitoring tells, see sync")
		return
	}
	e.fact("server.max_connections", v.MaxConnections)
	found := fmt.Sprintf("%d of %d", v.Connections, v.MaxConnections)
	if v.MaxConnections > 0 && v.Connections*10 > v.MaxConnections*8 {
		e.warn("connections", "raise max_connections of the server; during a deploy twice as many processes are connected", "%s", found)
	} else {
		e.ok("connections", "%s", found)
	}
}
