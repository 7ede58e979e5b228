package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/topic"
	"github.com/tidings-go/tidings/natsbus"
)

// Options say what is looked at.
type Options struct {
	URL      string   // of the broker, as applications are given it
	Prefix   string   // what keeps environments apart on it
	App      string   // whose stream is compared with what the URL declares; empty: nobody's
	Routes   string   // of the app, as TIDINGS_ROUTES
	Monitor  string   // nats-server's HTTP monitoring; empty: port 8222 of each server is tried
	SpoolDir string   // empty: there is no spool
	SpoolMax int64    // bytes that one process may keep there
	Self     []string // the program, as what its own children look for signals
	Environ  []string // NAME=VALUE, to be checked
}

// patience is how long one question may take.
const patience = 3 * time.Second

// exam is one examination.
type exam struct {
	o      Options
	r      *Report
	target *natsbus.Target
	routes []route

	nc      *nats.Conn // to the first server that took us
	js      jetstream.JetStream
	user    *userInfo // nil: the server does not say
	varz    *varz     // nil: not reachable
	monitor string    // where that is
}

// A route is a part of TIDINGS_ROUTES.
type route struct{ pattern, class string }

func (r route) durable() bool { return strings.HasPrefix(r.class, "durable") }

// Examine looks at everything. It fails only if it cannot look at all, because an option
// is wrong; a broker that does not answer is a finding. ctx bounds it.
func Examine(ctx context.Context, o Options) (*Report, error) {
	target, err := natsbus.ParseTarget(o.URL)
	if err != nil {
		return nil, err
	}
	routes, err := readRoutes(o.Routes)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // for people
	e := &exam{o: o, target: target, routes: routes, r: &Report{Format: format, Time: time.Now().UTC().Truncate(time.Second), Host: host,
		URL: target.String(), App: o.App, Checks: []Check{}, Facts: map[string]string{}}}
	e.client()
	e.servers(ctx)
	if e.nc != nil {
		defer e.nc.Close()
		e.broker(ctx)
	}
	e.machine(ctx)
	return e.r, nil
}

func (e *exam) broker(ctx context.Context) {
	e.askUser(ctx)
	e.askMonitor(ctx)
	e.transport()
	e.version()
	e.limits()
	e.clock(ctx)
	e.permissions(ctx)
	if e.jetstream(ctx) {
		e.syncs()
		e.streams(ctx)
	}
}

// readRoutes reads what TIDINGS_ROUTES may hold.
func readRoutes(s string) (all []route, err error) {
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		pattern, class, _ := strings.Cut(pair, "=")
		r := route{strings.TrimSpace(pattern), strings.TrimSpace(class)}
		if err := topic.CheckPattern(r.pattern); err != nil {
			return nil, fmt.Errorf("routes: %q: %w", pair, err)
		}
		switch r.class {
		case "local", "live", "durable", "durable+spool":
		default:
			return nil, fmt.Errorf("routes: %q: want PATTERN=local, PATTERN=live, PATTERN=durable or PATTERN=durable+spool", pair)
		}
		all = append(all, r)
	}
	return all, nil
}

func (e *exam) add(v Verdict, name, do, format string, args ...any) {
	e.r.Checks = append(e.r.Checks, Check{Name: name, Verdict: v, Found: fmt.Sprintf(format, args...), Do: do})
}

func (e *exam) ok(name, format string, args ...any)       { e.add(OK, name, "", format, args...) }
func (e *exam) warn(name, do, format string, args ...any) { e.add(Warn, name, do, format, args...) }
func (e *exam) fail(name, do, format string, args ...any) { e.add(Fail, name, do, format, args...) }
func (e *exam) skip(name, format string, args ...any)     { e.add(Skipped, name, "", format, args...) }

// fact notes what two environments can be compared by.
func (e *exam) fact(name string, value any) { e.r.Facts[name] = fmt.Sprint(value) }

// subject is where a topic or pattern is on the wire.
func (e *exam) subject(pattern string) string {
	if e.o.Prefix == "" {
		return pattern
	}
	return e.o.Prefix + "." + pattern
}

// refused has f write something, and says what permission the server finds missing: it
// has told so before it answers what is written after it.
func (e *exam) refused(ctx context.Context, f func() error) (denied bool, err error) {
	before := e.nc.LastError()
	if err := f(); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := e.nc.FlushWithContext(ctx); err != nil {
		return false, err
	}
	after := e.nc.LastError()
	return after != nil && after != before && errors.Is(after, nats.ErrPermissionViolation), nil
}

var errDenied = errors.New("no permission")

// ask is a request whose refusal is heard at once.
func (e *exam) ask(ctx context.Context, subject string, body []byte) (*nats.Msg, error) {
	var sub *nats.Subscription
	inbox := e.nc.NewInbox()
	denied, err := e.refused(ctx, func() (err error) {
		if sub, err = e.nc.SubscribeSync(inbox); err != nil {
			return err
		}
		return e.nc.PublishRequest(subject, inbox, body)
	})
	if sub != nil {
		defer func() { _ = sub.Unsubscribe() }()
	}
	if denied {
		err = errDenied
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}

// isAtLeast compares versions like 2.15.2.
func isAtLeast(version string, want ...int) bool {
	parts := strings.Split(version, ".")
	for i, w := range want {
		var have int
		if i == len(parts) {
			return false
		}
		digits, _, _ := strings.Cut(parts[i], "-") // 3-RC.1, of what is not out yet
		if _, err := fmt.Sscan(digits, &have); err != nil || have != w {
			return err == nil && have > w
		}
	}
	return true
}
