package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/natsbus"
)

// needsStreams reports whether the app is known to do without JetStream.
func (e *exam) needsStreams() bool {
	return len(e.routes) == 0 || slices.ContainsFunc(e.routes, route.durable)
}

// jetstream reports whether there is any.
func (e *exam) jetstream(ctx context.Context) bool {
	const way = "enable it (tidings hub has it; nats-server -js; an account needs jetstream: enabled), or declare no durable route"
	js, err := jetstream.New(e.nc)
	if err != nil {
		e.fail("jetstream", way, "%v", err)
		return false
	}
	e.js = js
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	info, err := js.AccountInfo(ctx)
	e.fact("jetstream", map[bool]string{true: "on", false: "off"}[err == nil])
	switch {
	case err == nil:
	case !e.needsStreams():
		e.warn("jetstream", way, "there is none (%v), and no route is durable", err)
		return false
	case errors.Is(err, context.DeadlineExceeded):
		e.fail("jetstream", "it may be starting, or a cluster may have no leader: two of three servers must be up", "it does not answer: %v", err)
		return false
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		e.fail("jetstream", way, "the server has none for this account")
		return false
	default:
		e.fail("jetstream", way, "%v", err)
		return false
	}
	e.fact("jetstream.api_level", info.API.Level)
	e.ok("jetstream", "API level %d, %d streams, %d consumers", info.API.Level, info.Streams, info.Consumers)
	e.account(info)
	return true
}

// account compares what the account has used with what it may.
func (e *exam) account(info *jetstream.AccountInfo) {
	l := info.Limits
	var found, near []string
	limit := func(what string, used uint64, most int64) {
		e.fact("jetstream.limit."+what, unlimited(most))
		if found = append(found, fmt.Sprintf("%s %d of %s", what, used, unlimited(most))); most > 0 && float64(used) > 0.8*float64(most) {
			near = append(near, what)
		}
	}
	limit("store", info.Store, l.MaxStore)
	limit("memory", info.Memory, l.MaxMemory)
	limit("streams", uint64(info.Streams), int64(l.MaxStreams))
	limit("consumers", uint64(info.Consumers), int64(l.MaxConsumers))
	if v := e.varz; v != nil && v.JetStream.Config != nil {
		e.fact("server.max_file_store", v.JetStream.Config.MaxStore)
		e.fact("server.max_memory_store", v.JetStream.Config.MaxMemory)
	}
	if near != nil {
		e.warn("account limits", "raise the account's limit, or purge: tidings streams shows what holds events", "%s", strings.Join(found, ", "))
		return
	}
	e.ok("account limits", "%s", strings.Join(found, ", "))
}

func unlimited(n int64) string {
	if n <= 0 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}

// hubName is how the name of a server of ours begins.
const hubName = "tidings-hub"

// syncs says what is on the disk when an event is acknowledged.
func (e *exam) syncs() {
	clustered := e.nc.ConnectedClusterName() != ""
	const do = "set sync_interval: always in the server's jetstream block, or keep three copies on three machines (replicas=3)"
	switch v := e.varz; {
	case v != nil && v.JetStream.Config != nil && v.JetStream.Config.SyncAlways:
		e.fact("server.sync", "always")
		e.ok("sync", "the server syncs each event before it acknowledges it")
	case v != nil && v.JetStream.Config != nil && v.JetStream.Config.SyncInterval > 0:
		every := v.JetStream.Config.SyncInterval
		e.fact("server.sync", every)
		if clustered {
			e.ok("sync", "every %v; an event of a stream with three copies is acknowledged when two servers have it", every)
		} else {
			e.warn("sync", do, "every %v: when the machine loses its power, what was acknowledged since is lost", every)
		}
	case strings.HasPrefix(e.nc.ConnectedServerName(), hubName):
		e.fact("server.sync", "always")
		e.ok("sync", "%s is a tidings hub: each event is on its disk before it is acknowledged", e.nc.ConnectedServerName())
	default:
		e.fact("server.sync", "unknown")
		e.warn("sync", "name the server's monitoring, --monitor=http://HOST:8222, or look for sync_interval in its configuration: without it the server syncs every two minutes",
			"a client cannot know when the server syncs to its disk")
	}
}

// streams looks at what is stored.
func (e *exam) streams(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*patience)
	defer cancel()
	admin, err := natsbus.OpenAdmin(ctx, e.o.URL, adapter.Config{Prefix: e.o.Prefix, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		e.fail("streams", "see the error", "%v", err)
		return
	}
	defer func() { _ = admin.Close() }() // nothing was published
	states, err := admin.Streams(ctx)
	if err != nil {
		e.fail("streams", "see the error", "%v", err)
		return
	}
	plan := e.declared(ctx, admin)
	if len(states) == 0 {
		e.ok("streams", "none yet: the first process with a durable route makes its app's")
	}
	for _, s := range states {
		e.stream(ctx, s, plan)
	}
	e.deadLetters(ctx, admin.DeadStream())
}

// declared compares with what the app's URL and routes declare, if the app is known.
func (e *exam) declared(ctx context.Context, admin *natsbus.Admin) *natsbus.Plan {
	d := natsbus.Declaration{App: e.o.App, Settings: e.target.Settings()}
	for _, r := range e.routes {
		if r.durable() {
			d.Durable = append(d.Durable, r.pattern)
		}
	}
	if d.App == "" {
		e.skip("declared", "which app's stream the URL declares is not known (--app, TIDINGS_APP)")
		return nil
	}
	plan, err := admin.Plan(ctx, d)
	switch {
	case err != nil:
		e.fail("declared", "see the error", "%v", err)
	case plan.Create:
		e.warn("declared", "start the app, or tidings apply", "stream %s, which the routes of %s need, is not there", plan.Stream, d.App)
	case len(plan.Add) > 0:
		e.warn("declared", "start the app, or tidings apply", "no stream has %s", strings.Join(plan.Add, " "))
	case len(plan.Differences) > 0:
		// It is said of the stream itself.
	default:
		e.ok("declared", "the stream of %s is as its routes and URL say", d.App)
	}
	return plan
}

func (e *exam) stream(ctx context.Context, s natsbus.StreamState, plan *natsbus.Plan) {
	name := "stream " + s.Name
	st, err := e.js.Stream(ctx, s.Name)
	if err != nil {
		e.fail(name, "see the error", "%v", err)
		return
	}
	info := st.CachedInfo()
	e.streamFacts(info)
	cfg := info.Config
	found := fmt.Sprintf("%d events, %.0f%% full, %s, discard %s, ids remembered %v", s.Messages, 100*s.Used, copies(cfg.Replicas), cfg.Discard, cfg.Duplicates)
	var wrong []string
	differences := natsbus.Unsafe(cfg)
	if plan != nil && plan.Stream == s.Name {
		differences = plan.Differences
	}
	for _, d := range differences {
		wrong = append(wrong, d.String())
	}
	switch {
	case wrong != nil:
		e.fail(name, "tidings apply, or manage=true in the app's URL", "%s", strings.Join(wrong, "; "))
	case lagging(info.Cluster) != "":
		e.warn(name, "see to that server: until it has caught up, one failure less can be borne", "%s; %s", found, lagging(info.Cluster))
	case s.Used > 0.9:
		e.warn(name, "tidings streams shows which group holds events; raise max-bytes or max-msgs", "%s: publishers will be refused", found)
	case cfg.Replicas < 3 && e.nc.ConnectedClusterName() != "":
		e.warn(name, "set replicas=3 in the app's URL, with manage=true once, or tidings apply", "%s: in a cluster, and gone when its server is", found)
	case cfg.Duplicates < shortWindow:
		e.warn(name, "set duplicates=2m in the app's URL, with manage=true once, or tidings apply", "%s: what is sent again after a longer outage may be stored twice", found)
	default:
		e.ok(name, "%s", found)
	}
	e.groups(ctx, st, s)
}

// shortWindow is less than many an outage lasts.
const shortWindow = 30 * time.Second

func copies(n int) string {
	if n == 1 {
		return "1 copy"
	}
	return fmt.Sprintf("%d copies", n)
}

// lagging names the copies that are not there or behind.
func lagging(c *jetstream.ClusterInfo) string {
	if c == nil {
		return ""
	}
	if c.Leader == "" {
		return "it has no leader"
	}
	for _, r := range c.Replicas {
		if r.Offline {
			return "the copy on " + r.Name + " is away"
		}
		if !r.Current {
			return fmt.Sprintf("the copy on %s is behind or away: %d events missing, last heard of %v ago", r.Name, r.Lag, r.Active.Round(time.Millisecond))
		}
	}
	return ""
}

func (e *exam) streamFacts(info *jetstream.StreamInfo) {
	cfg, p := info.Config, "stream."+info.Config.Name+"."
	e.fact(p+"subjects", strings.Join(slices.DeleteFunc(slices.Sorted(slices.Values(cfg.Subjects)), func(s string) bool { return strings.HasPrefix(s, "$") }), " "))
	e.fact(p+"storage", cfg.Storage)
	e.fact(p+"retention", cfg.Retention)
	e.fact(p+"discard", cfg.Discard)
	e.fact(p+"replicas", cfg.Replicas)
	e.fact(p+"duplicates", cfg.Duplicates)
	e.fact(p+"max_bytes", unlimited(cfg.MaxBytes))
	e.fact(p+"max_msgs", unlimited(cfg.MaxMsgs))
	e.fact(p+"max_age", cfg.MaxAge)
	e.fact(p+"max_msg_size", unlimited(int64(cfg.MaxMsgSize)))
	e.fact(p+"atomic_batches", cfg.AllowAtomicPublish)
	e.fact(p+"message_ttl", cfg.AllowMsgTTL)
}

// groups looks at the durable groups of a stream.
func (e *exam) groups(ctx context.Context, st jetstream.Stream, s natsbus.StreamState) {
	for _, g := range s.Groups {
		name := fmt.Sprintf("group %s (%s)", g.Group, g.Pattern)
		c, err := st.Consumer(ctx, g.Consumer)
		if err != nil {
			e.fail(name, "see the error", "%v", err)
			continue
		}
		e.group(name, g, c.CachedInfo())
	}
}

// stuckAfter is how many ack waits nothing may move while events are unsettled.
const stuckAfter = 10

func (e *exam) group(name string, g natsbus.GroupState, i *jetstream.ConsumerInfo) {
	cfg, p := i.Config, fmt.Sprintf("group.%s.%s.", g.Group, g.Pattern)
	e.fact(p+"ack_wait", cfg.AckWait)
	e.fact(p+"max_ack_pending", cfg.MaxAckPending)
	e.fact(p+"paused", i.Paused)
	found := fmt.Sprintf("%s, %d wait, %d unsettled, ack wait %v", g.State, g.Pending, g.Unsettled, cfg.AckWait)
	switch {
	case i.Paused:
		e.fail(name, fmt.Sprintf("nats consumer resume %s %s", g.Stream, g.Consumer), "%s: it is paused for %v more", found, i.PauseRemaining.Round(time.Second))
	case cfg.AckPolicy != jetstream.AckExplicitPolicy:
		e.fail(name, fmt.Sprintf("nats consumer rm %s %s, and start the app: it begins with what is stored", g.Stream, g.Consumer), "%s: its ack policy is %s, want %s", found, cfg.AckPolicy, jetstream.AckExplicitPolicy)
	case g.Orphan:
		e.warn(name, fmt.Sprintf("tidings streams forget %s '%s', if nobody needs it: it keeps the stream from being purged", g.Group, g.Pattern), "%s: an orphan, since %s", found, g.LastActive.UTC().Format(time.RFC3339))
	case cfg.MaxAckPending > 0 && i.NumAckPending >= cfg.MaxAckPending:
		e.warn(name, "its handlers must settle some: see tidings status for what hangs", "%s: as many unsettled as it may have (%d), so it gets nothing", found, cfg.MaxAckPending)
	case g.Unsettled > 0 && time.Since(g.LastActive) > stuckAfter*cfg.AckWait:
		e.warn(name, "see tidings status for handlers that hang", "%s: nothing was settled since %s", found, g.LastActive.UTC().Format(time.RFC3339))
	case g.State == natsbus.GroupAway && g.Waits() > 0:
		e.warn(name, "start its app", "%s: nobody takes them", found)
	default:
		e.ok(name, "%s", found)
	}
}

func (e *exam) deadLetters(ctx context.Context, stream string) {
	st, err := e.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		e.ok("dead letters", "none: no event has died yet")
		return
	}
	var info *jetstream.StreamInfo
	if err == nil {
		info, err = st.Info(ctx, jetstream.WithSubjectFilter("$TIDINGS.dead.>"))
	}
	if err != nil {
		e.fail("dead letters", "see the error", "stream %s: %v", stream, err)
		return
	}
	letters := uint64(0)
	for _, n := range info.State.Subjects {
		letters += n
	}
	if letters > 0 {
		e.warn("dead letters", "tidings dlq list shows them; redrive or drop them", "%d events were given up", letters)
		return
	}
	e.ok("dead letters", "none")
}
