// Package metrics shows what a bus counts to monitoring systems: as a sequence from which
// any library's exporter is a loop, and as a page in Prometheus' text format.
//
//	http.Handle("/metrics", metrics.Handler(bus))
//
// It keeps nothing and starts nothing: each look is one [tidings.Debugger.Snapshot], which
// costs those who publish nothing but the memory traffic of reading their counters. Names
// and units follow Prometheus' conventions; a counter begins at 0 with its process.
package metrics

import (
	"bufio"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidings-go/tidings"
)

// Kind is how a metric's value moves.
type Kind string

// The kinds, as Prometheus calls them.
const (
	Counter Kind = "counter" // only upwards
	Gauge   Kind = "gauge"
)

// A Metric is one value. Those of one name follow each other, and have the same labels.
type Metric struct {
	Name, Help string
	Kind       Kind
	Labels     []Label
	Value      float64
}

// A Label tells values of one name apart.
type Label struct{ Name, Value string }

// A family is what has one name.
type family[T any] struct {
	name, help string
	kind       Kind
	value      func(T) float64
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func count[T ~int | ~uint64](n T) float64 { return float64(n) }

// state is what there is one of in a process.
type state struct {
	tidings.Snapshot
	problems int
}

var ofBus = []family[state]{
	{"tidings_problems", "What does not work now; Debugger.Health names it.", Gauge, func(s state) float64 { return count(s.problems) }},
	{"tidings_dropped_total", "Events that queues dropped.", Counter, func(s state) float64 { return count(s.Dropped) }},
}

var ofTransport = []family[state]{
	{"tidings_transport_connected", "1 while there is a connection to the broker.", Gauge, func(s state) float64 { return flag(s.Transport.Connected) }},
	{"tidings_transport_disconnects_total", "Connections lost.", Counter, func(s state) float64 { return count(s.Transport.Disconnects) }},
	{"tidings_transport_in_doubt_total", "Live events that may have been lost with a connection.", Counter, func(s state) float64 { return count(s.Transport.InDoubt) }},
	{"tidings_transport_dropped_total", "Events given up by the transport; the log has each cause.", Counter, func(s state) float64 { return count(s.Transport.Dropped) }},
	{"tidings_transport_buffered", "Events accepted and not written yet.", Gauge, func(s state) float64 { return count(s.Transport.Buffered) }},
	{"tidings_transport_spooled", "Durable events in the spool.", Gauge, func(s state) float64 { return count(s.Transport.Spooled) }},
	{"tidings_transport_purged_total", "Stored events removed because every group had acknowledged them.", Counter, func(s state) float64 { return count(s.Transport.Purged) }},
	{"tidings_transport_possible_doubles_total", "Durable events sent again that may be stored already.", Counter, func(s state) float64 { return count(s.Transport.Possible) }},
	{"tidings_transport_stalled_total", "Times a subscription was found to get nothing though it should.", Counter, func(s state) float64 { return count(s.Transport.Stalled) }},
}

var ofTopic = []family[tidings.TopicInfo]{
	{"tidings_topic_events_total", "Events of a topic that somebody listened to.", Counter, func(t tidings.TopicInfo) float64 { return count(t.Events) }},
	{"tidings_topic_listeners", "Subscriptions of this process that match a topic.", Gauge, func(t tidings.TopicInfo) float64 { return count(t.Listeners) }},
}

var ofSubscription = []family[sub]{
	{"tidings_subscription_ready", "1 once events were seen to flow.", Gauge, func(i sub) float64 { return flag(i.Ready) }},
	{"tidings_subscription_queued", "Events that wait, also for a retry.", Gauge, func(i sub) float64 { return count(i.Queued) }},
	{"tidings_subscription_running", "Handlers that run.", Gauge, func(i sub) float64 { return count(i.Running) }},
	{"tidings_subscription_hung", "Handlers that do not return.", Gauge, func(i sub) float64 { return count(len(i.Hung)) }},
	{"tidings_subscription_received_total", "Events received; those that the store delivers twice are two.", Counter, func(i sub) float64 { return count(i.Received) }},
	{"tidings_subscription_redelivered_total", "Events received that the store had delivered before.", Counter, func(i sub) float64 { return count(i.Redelivered) }},
	{"tidings_subscription_handled_total", "Events handled.", Counter, func(i sub) float64 { return count(i.Handled) }},
	{"tidings_subscription_acked_total", "Durable events handled whose acknowledgement the store has confirmed.", Counter, func(i sub) float64 { return count(i.Acked) }},
	{"tidings_subscription_failed_total", "Attempts that failed.", Counter, func(i sub) float64 { return count(i.Failed) }},
	{"tidings_subscription_panicked_total", "Attempts that panicked.", Counter, func(i sub) float64 { return count(i.Panicked) }},
	{"tidings_subscription_returned_total", "Durable events that went back, to come again.", Counter, func(i sub) float64 { return count(i.Returned) }},
	{"tidings_subscription_gave_up_total", "Events failed for good.", Counter, func(i sub) float64 { return count(i.GaveUp) }},
	{"tidings_subscription_dead_letters_total", "Durable events given up and kept as dead letters.", Counter, func(i sub) float64 { return count(i.DeadLetters) }},
	{"tidings_subscription_dead_letter_errors_total", "Times a dead letter could not be stored.", Counter, func(i sub) float64 { return count(i.DeadLetterErrors) }},
	{"tidings_subscription_expired_total", "Events that came too late to be handled.", Counter, func(i sub) float64 { return count(i.Expired) }},
	{"tidings_subscription_dropped_total", "Events that its queue dropped.", Counter, func(i sub) float64 { return count(i.Dropped) }},
	{"tidings_subscription_hung_total", "Handlers that did not return in time, ever.", Counter, func(i sub) float64 { return count(i.HungEver) }},
	{"tidings_subscription_missing", "Live events sent that no process of the group got.", Gauge, func(i sub) float64 { return count(i.Missing) }},
	{"tidings_subscription_latency_p50_seconds", "Median time of a handler, to within a quarter.", Gauge, func(i sub) float64 { return i.Latency.P50.Seconds() }},
	{"tidings_subscription_latency_p99_seconds", "99th percentile of the time of a handler, to within a quarter.", Gauge, func(i sub) float64 { return i.Latency.P99.Seconds() }},
	{"tidings_subscription_latency_max_seconds", "Longest time of a handler.", Gauge, func(i sub) float64 { return i.Latency.Max.Seconds() }},
}

var lag = []family[sub]{
	{"tidings_subscription_lag", "Stored events that no process of the group was given yet.", Gauge, func(i sub) float64 { return count(i.Lag) }},
}

// Of yields everything that a bus counts at one moment. It may be called concurrently, and
// inside a handler. Subscriptions that have ended are not among it.
func Of(b *tidings.Bus) iter.Seq[Metric] {
	return of(state{b.Debugger().Snapshot(), len(b.Debugger().Health().Problems)})
}

func of(s state) iter.Seq[Metric] {
	app := []Label{{"app", s.App}, {"instance", s.Instance}}
	process := func(state) []Label { return app }
	topic := func(t tidings.TopicInfo) []Label { return append(app[:2:2], Label{"topic", t.Name}) }
	all, lagging := subscriptions(s.Subscriptions)
	return func(yield func(Metric) bool) {
		_ = each(ofBus, []state{s}, process, yield) &&
			(!s.Attached || each(ofTransport, []state{s}, process, yield)) &&
			each(ofTopic, s.Topics, topic, yield) &&
			each(ofSubscription, all, labels(app), yield) &&
			each(lag, lagging, labels(app), yield)
	}
}

// A sub is a subscription, and which it is of those that are alike.
type sub struct {
	tidings.SubscriptionInfo
	n int
}

// subscriptions are those that live, and of these the ones whose lag is known.
func subscriptions(infos []tidings.SubscriptionInfo) (all, lagging []sub) {
	alike := map[[4]string]int{}
	for _, i := range infos {
		if i.Ended {
			continue
		}
		key := [4]string{i.Pattern, i.Group, i.Name, i.Place}
		alike[key]++
		s := sub{i, alike[key]}
		all = append(all, s)
		if i.LagKnown {
			lagging = append(lagging, s)
		}
	}
	return all, lagging
}

// labels tell subscriptions apart, by the place where they were made if by nothing else, or
// by their number among those that were made there.
func labels(app []Label) func(sub) []Label {
	return func(i sub) []Label {
		return append(app[:2:2], Label{"pattern", i.Pattern}, Label{"group", i.Group}, Label{"durable", strconv.FormatBool(i.Durable)},
			Label{"name", i.Name}, Label{"place", i.Place}, Label{"n", strconv.Itoa(i.n)})
	}
}

func each[T any](families []family[T], all []T, labels func(T) []Label, yield func(Metric) bool) bool {
	for _, f := range families {
		for _, t := range all {
			if !yield(Metric{f.name, f.help, f.kind, labels(t), f.value(t)}) {
				return false
			}
		}
	}
	return true
}

// Handler serves what [Of] yields in Prometheus' text format 0.0.4. It asks for no
// password: serve it on loopback, or behind something that does.
func Handler(b *tidings.Bus) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		out := bufio.NewWriter(w)
		last := ""
		for m := range Of(b) {
			if m.Name != last {
				last = m.Name
				fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", m.Name, m.Help, m.Name, m.Kind)
			}
			out.WriteString(m.Name)
			for i, l := range m.Labels {
				out.WriteByte("{,"[min(i, 1)])
				fmt.Fprintf(out, `%s="%s"`, l.Name, escape.Replace(l.Value))
			}
			fmt.Fprintf(out, "} %s\n", strconv.FormatFloat(m.Value, 'g', -1, 64))
		}
		_ = out.Flush() // the client is gone otherwise
	})
}

// escape is what label values need.
var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
