package doctor

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/internal/topic"
)

// permissions tries what Tidings needs permission for.
func (e *exam) permissions(ctx context.Context) {
	e.permissionFacts()
	e.privateSubject(ctx)
	e.inbox(ctx)
	e.api(ctx)
	if len(e.routes) == 0 {
		e.skip("routes", "none are given (--routes, TIDINGS_ROUTES): no topic was tried")
	}
	for _, r := range e.routes {
		if r.class != "local" {
			e.route(ctx, r)
		}
	}
}

// privateSubject has an event go to the server and back, on a subject that nobody has:
// one of Tidings' own or, for a user whose rights are narrow, of its inbox.
func (e *exam) privateSubject(ctx context.Context) {
	const name = "publish, subscribe"
	took, err := e.roundTrip(ctx, "$TIDINGS.doctor."+rand.Text())
	if err != nil {
		if again, failed := e.roundTrip(ctx, e.nc.NewInbox()); failed == nil {
			took, err = again, nil
		}
	}
	if err != nil {
		e.fail(name, "allow this user to publish and subscribe to $TIDINGS.>, where Tidings keeps dead letters and counts; an import or mapping of the account may also send it elsewhere", "%v", err)
		return
	}
	e.ok(name, "a probe came back in %v", short(took))
}

func (e *exam) roundTrip(ctx context.Context, subject string) (time.Duration, error) {
	var sub *nats.Subscription
	denied, err := e.refused(ctx, func() (err error) {
		sub, err = e.nc.SubscribeSync(subject)
		return err
	})
	if sub != nil {
		defer func() { _ = sub.Unsubscribe() }()
	}
	if err != nil || denied {
		return 0, fmt.Errorf("cannot subscribe to %s: %s", subject, cause(denied, err))
	}
	sent := time.Now()
	if denied, err = e.refused(ctx, func() error { return e.nc.Publish(subject, []byte("probe")) }); err != nil || denied {
		return 0, fmt.Errorf("cannot publish to %s: %s", subject, cause(denied, err))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := sub.NextMsgWithContext(ctx); err != nil {
		return 0, fmt.Errorf("what was published to %s did not come back: %w", subject, err)
	}
	return time.Since(sent), nil
}

func cause(denied bool, err error) string {
	if denied {
		return "no permission"
	}
	return err.Error()
}

func (e *exam) inbox(ctx context.Context) {
	var sub *nats.Subscription
	denied, err := e.refused(ctx, func() (err error) {
		sub, err = e.nc.SubscribeSync(e.nc.NewInbox())
		return err
	})
	if sub != nil {
		defer func() { _ = sub.Unsubscribe() }()
	}
	if err != nil || denied {
		e.fail("answers", "allow this user to subscribe to _INBOX.>: JetStream and requests answer there", "cannot subscribe to an inbox: %s", cause(denied, err))
		return
	}
	e.ok("answers", "an inbox can be subscribed to")
}

// apis are the calls of JetStream's API that applications make. None has an effect: each
// is about a stream that does not exist, or names another one in its body, which is
// refused. A request that cannot be read would do, too, and be a line in the server's log.
var apis = []struct {
	op, body string
	of       string // what such subjects are like
	needed   bool   // also by who only subscribes; others make streams, and look after them
}{
	{"INFO", "", "INFO", true}, {"STREAM.LIST", `{"subject":"tidings-doctor.none"}`, "STREAM.LIST", true}, {"STREAM.INFO.%s", "", "STREAM.INFO.*", true},
	{"STREAM.MSG.GET.%s", `{"seq":1}`, "STREAM.MSG.GET.*", false},
	{"CONSUMER.LIST.%s", "{}", "CONSUMER.LIST.*", true}, {"CONSUMER.INFO.%s.none", "", "CONSUMER.INFO.*.*", true},
	{"CONSUMER.CREATE.%s.none", `{"stream_name":"none"}`, "CONSUMER.CREATE.>", true}, {"CONSUMER.MSG.NEXT.%s.none", "", "CONSUMER.MSG.NEXT.*.*", true},
	{"STREAM.CREATE.%s", `{"name":"none"}`, "STREAM.CREATE.*", false}, {"STREAM.UPDATE.%s", `{"name":"none"}`, "STREAM.UPDATE.*", false},
	{"STREAM.PURGE.%s", "", "STREAM.PURGE.*", false}, {"CONSUMER.DELETE.%s.none", "", "CONSUMER.DELETE.*.*", false},
}

func (e *exam) api(ctx context.Context) {
	const name, allow = "jetstream api", "allow this user to publish to $JS.API.> and $JS.ACK.>; for narrower rights see docs/hub.md"
	none := "tidings-doctor-" + rand.Text()
	var missing, lacking []string
	some := 0
	for _, call := range apis {
		op := call.op
		if strings.Contains(op, "%s") {
			op = fmt.Sprintf(op, none)
		}
		may, err := e.mayPublish(ctx, "$JS.API."+op, call.body)
		if err != nil {
			e.fail(name, "see the error, and look again", "%s: %v", op, err)
			return
		}
		of := "$JS.API." + call.of
		switch {
		case may:
		case e.maySome(of):
			some++
		case call.needed:
			missing = append(missing, of)
		default:
			lacking = append(lacking, of)
		}
	}
	if may, err := e.mayPublish(ctx, "$JS.ACK."+none+".none.1.1.1.1.0", ""); err == nil && !may && !e.maySome("$JS.ACK.>") {
		missing = append(missing, "$JS.ACK.>")
	}
	switch {
	case missing != nil && e.needsStreams():
		e.fail(name, allow, "no permission to publish to %s", strings.Join(append(missing, lacking...), ", "))
	case missing != nil:
		e.warn(name, allow, "no permission to publish to %s; no route is durable", strings.Join(append(missing, lacking...), ", "))
	case lacking != nil && e.publishes():
		e.warn(name, "allow it; or make streams by tidings apply as a user that may, and raise limits by hand where Tidings would purge", "no permission to publish to %s", strings.Join(lacking, ", "))
	case some > 0:
		e.ok(name, "%d calls and acknowledgements are permitted, %d of them for some streams and groups only", len(apis), some)
	default:
		e.ok(name, "%d calls and acknowledgements are permitted", len(apis))
	}
}

// publishes reports whether the app may be one that publishes durable events.
func (e *exam) publishes() bool {
	return len(e.routes) == 0 || slices.ContainsFunc(e.routes, func(r route) bool {
		known, may := e.mayPublishTo(e.subject(r.pattern))
		return r.durable() && (may || !known)
	})
}

// maySome reports whether the server permits a part of these subjects.
func (e *exam) maySome(subjects string) bool {
	if e.user == nil || e.user.Permissions == nil {
		return false
	}
	p := e.user.Permissions.Publish
	return slices.ContainsFunc(p.Allow, func(a string) bool { return topic.Overlap(a, subjects) }) &&
		!slices.ContainsFunc(p.Deny, func(d string) bool { return topic.Covers(d, subjects) })
}

// mayPublish tries it, with a request that has no effect.
func (e *exam) mayPublish(ctx context.Context, subject, body string) (bool, error) {
	denied, err := e.refused(ctx, func() error { return e.nc.PublishRequest(subject, e.nc.NewInbox(), []byte(body)) })
	return !denied, err
}

// route tries to subscribe to a topic of the app. To publish is not tried: it would be
// an event. There the server's word is taken.
func (e *exam) route(ctx context.Context, r route) {
	name, subject := "route "+r.pattern, e.subject(r.pattern)
	var sub *nats.Subscription
	denied, err := e.refused(ctx, func() (err error) {
		sub, err = e.nc.Subscribe(subject, func(*nats.Msg) {})
		return err
	})
	if sub != nil {
		_ = sub.Unsubscribe()
	}
	known, may := e.mayPublishTo(subject)
	switch heard := err == nil && !denied; {
	case !heard && known && may:
		e.warn(name, fmt.Sprintf("allow this user to subscribe to %q, if the app does", subject), "%s, can publish, and not subscribe: %s", r.class, cause(denied, err))
	case !heard:
		e.fail(name, fmt.Sprintf("allow this user to subscribe to %q", subject), "%s, cannot subscribe: %s", r.class, cause(denied, err))
	case !known:
		e.ok(name, "%s, can subscribe; whether it can publish the server does not say ($SYS.REQ.USER.INFO)", r.class)
	case !may:
		e.warn(name, fmt.Sprintf("allow this user to publish to %q, if the app publishes it", subject), "%s, can subscribe, and not publish all of it", r.class)
	default:
		e.ok(name, "%s, can publish and subscribe", r.class)
	}
}

// mayPublishTo says whether the server permits all of a subject.
func (e *exam) mayPublishTo(subject string) (known, may bool) {
	if e.user == nil {
		return false, false
	}
	if e.user.Permissions == nil {
		return true, true
	}
	p := e.user.Permissions.Publish
	allowed := len(p.Allow) == 0 || slices.ContainsFunc(p.Allow, func(a string) bool { return topic.Covers(a, subject) })
	denied := slices.ContainsFunc(p.Deny, func(d string) bool { return topic.Overlap(d, subject) })
	return true, allowed && !denied
}

func (e *exam) permissionFacts() {
	if e.user == nil {
		return
	}
	say := func(what string, list []string, none string) {
		sorted := slices.Sorted(slices.Values(list))
		if len(sorted) == 0 {
			sorted = []string{none}
		}
		e.fact("permission."+what, strings.Join(sorted, " "))
	}
	var publish, subscribe subjects
	if p := e.user.Permissions; p != nil {
		publish, subscribe = p.Publish, p.Subscribe
	}
	say("publish.allow", publish.Allow, "everything")
	say("publish.deny", publish.Deny, "nothing")
	say("subscribe.allow", subscribe.Allow, "everything")
	say("subscribe.deny", subscribe.Deny, "nothing")
}
