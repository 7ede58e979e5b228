package tidings_test

import (
	"slices"
	"strings"
)

// difference is one that is allowed. rewrite makes what was observed there what
// it must be here, and reports whether there was anything to do; all else that
// differs then fails. Without rewrite the trace is the same, and only the program
// is another: the replay notes that it has used one.
//
// docs/oracle-differences.md has the same list, with what each is there and here.
type difference struct {
	id      string
	rewrite func(*comparison) bool
}

var differences = []difference{
	{"grammar", (*comparison).grammar},
	{"order", (*comparison).order},
	{"publish-reaches-all", (*comparison).publishReachesAll},
	{"error-beside-payload", (*comparison).errorBesidePayload},
	{"throw", (*comparison).throw},
	{"silenced-matches", (*comparison).silencedMatches},
	{"span-name", (*comparison).spanName},
	{"resources", (*comparison).resources},
	{"no-times", (*comparison).noTimes},
	{"error-reporter", (*comparison).errorReporter},
	{"all-run", (*comparison).allRun},
	{"debug-block", (*comparison).debugBlock},
	{"both-errors", (*comparison).bothErrors},
	{"ids", (*comparison).ids},

	{"unsubscribe-by-name", nil},
	{"arguments", nil},
	{"handle", nil},
	{"stack", nil},
	{"record", nil},
	{"context", nil},
	{"objects", nil},
	{"methods-later", nil},

	{"pattern-types", nil},
	{"one-payload", (*comparison).onePayload},
	{"prepend-anywhere", nil},
}

// comparison is what was observed there, and what happened here.
type comparison struct {
	r         *replay
	want, got []entry
}

func (x *comparison) allow() {
	x.notation()
	for _, d := range differences {
		if d.rewrite != nil && d.rewrite(x) {
			x.r.uses(d.id)
		}
	}
}

// notation takes out what is no difference: the oracle's README leaves it open, or
// no scenario at hand shows the form of the entry.
func (x *comparison) notation() {
	for _, t := range []*[]entry{&x.want, &x.got} {
		*t = slices.DeleteFunc(*t, func(e entry) bool { return e.is("in") && e["op"] != "subscribed" })
		for _, e := range *t {
			if c := e["class"]; e.is("raise", "caught", "error_report") && (c == "ArgumentError" || c == "NoMethodError") {
				e["class"], e["message"] = "ArgumentError", "" // the texts are Ruby's
			}
			plainArguments(e)
		}
	}
	for i := range x.want[:max(len(x.want)-1, 0)] { // which of the two comes first is left open
		if x.want[i].outcome("instrument") && x.want[i].is("raise") && x.want[i+1].is("caller_payload") {
			x.want[i], x.want[i+1] = x.want[i+1], x.want[i]
		}
	}
	for _, ev := range []string{"caught", "recorded", "inspect"} {
		x.project(ev)
	}
	x.dropUnobserved()
}

// plainArguments takes the text from an ArgumentError that was collected.
func plainArguments(e entry) {
	list, _ := e["exceptions"].([]any)
	for _, pair := range list {
		if p, ok := pair.([]any); ok && len(p) == 2 && (p[0] == "ArgumentError" || p[0] == "NoMethodError") {
			p[1] = ""
		}
	}
}

// project compares of such entries what both have.
func (x *comparison) project(ev string) {
	var got []entry
	for _, e := range x.got {
		if e.is(ev) {
			got = append(got, e)
		}
	}
	for i, e := range x.want {
		if !e.is(ev) || len(got) == 0 {
			continue
		}
		for key := range e.with("", nil) {
			if _, both := got[0][key]; !both {
				delete(e, key)
			}
		}
		for key := range got[0].with("", nil) {
			if _, both := x.want[i][key]; !both {
				delete(got[0], key)
			}
		}
		got = got[1:]
	}
}

// dropUnobserved: after an error the caller's payload is shown only perhaps.
func (x *comparison) dropUnobserved() {
	shown := 0
	for i := 0; i < len(x.got); i++ {
		if !x.got[i].is("caller_payload") {
			continue
		}
		failed := i+1 < len(x.got) && x.got[i+1].is("raise", "caught")
		if failed && shown == count(x.want, "caller_payload")-count(x.got[i+1:], "caller_payload") {
			x.got = slices.Delete(x.got, i, i+1)
			i--
			continue
		}
		shown++
	}
}

func count(trace []entry, ev string) (n int) {
	for _, e := range trace {
		if e.is(ev) {
			n++
		}
	}
	return n
}

// drop takes out of what is wanted.
func (x *comparison) drop(gone func(i int, e entry) bool) bool {
	var out []entry
	for i, e := range x.want {
		if !gone(i, e) {
			out = append(out, e)
		}
	}
	some := len(out) != len(x.want)
	x.want = out
	return some
}

// change replaces entries of what is wanted where f returns one.
func (x *comparison) change(f func(i int, e entry) entry) (some bool) {
	for i, e := range x.want {
		if n := f(i, e); n != nil {
			x.want[i], some = n, true
		}
	}
	return some
}

// listenerEntries are what listeners of the bus write.
var listenerEntries = []string{"call", "event", "start", "finish", "publish", "publish_event", "method"}

// eventName is the name of the event that a listener writes of.
func (e entry) eventName() string {
	if args, ok := e["args"].([]any); ok && len(args) > 0 {
		s, _ := args[0].(string)
		return s
	}
	return e.str("name")
}

// grammar: there is no event of such a name, nobody listens to it, and to publish
// it is an error.
func (x *comparison) grammar() bool {
	gone := x.drop(func(_ int, e entry) bool { return e.is(listenerEntries...) && badName(e.eventName()) })
	changed := x.change(func(_ int, e entry) entry {
		_, named := e["name"].(string)
		switch {
		case !named || !badName(e.str("name")):
		case e.is("listening", "subscribed_to") && e["value"] == true:
			return e.with("value", false)
		case e.is("return") && e["op"] == "publish":
			return entry{"ev": "raise", "op": "publish", "class": "ArgumentError", "message": ""}
		}
		return nil
	})
	return gone || changed
}

// publishReachesAll: an event listener gets what is published, in its turn.
func (x *comparison) publishReachesAll() (some bool) {
	ended := x.r.published
	for i := 0; i < len(x.want) && len(ended) > 0; i++ {
		if !x.want[i].outcome("publish") {
			continue
		}
		to := ended[0].listeners
		ended = ended[1:]
		for k := len(to) - 1; k >= 0; k-- { // from the last, so that places stay
			if to[k].kind != "event" && to[k].kind != "event_object" {
				continue
			}
			at := x.before(i, to[k+1:])
			x.want = slices.Insert(x.want, at, to[k].published(ended0(x.r.published, ended).name, ended0(x.r.published, ended).args).with("tx", "tx1"))
			i, some = i+1, true
		}
	}
	return some
}

// ended0 is the publication before the rest.
func ended0(all, rest []publication) publication { return all[len(all)-len(rest)-1] }

// before is the place of the first entry of these listeners before the outcome at
// end, which is its place if they have none.
func (x *comparison) before(end int, later []*listener) int {
	for _, l := range later {
		for i := end - 1; i >= 0 && !x.want[i].outcome("publish"); i-- {
			if x.want[i].is(listenerEntries...) && x.want[i]["sub"] == l.id {
				return i
			}
		}
	}
	return end
}

// ended reports whether the listener has the event complete.
func ended(e entry) bool { return e.is("call", "event", "finish", "method") }

// bothErrors: a strict bus returns what its subscribers failed with, and then what
// the block did; so does what contains it.
func (x *comparison) bothErrors() bool {
	raised := x.r.raised
	there := x.change(func(_ int, e entry) entry {
		if !e.is("raise") || e["op"] != "instrument" || len(raised) == 0 {
			return nil
		}
		f := raised[0]
		raised = raised[1:]
		if f.hidden == nil {
			return nil
		}
		return collection(append(exceptionsOf(e), exceptionsOf(f.hidden)...)).with("op", "instrument").with("ev", "raise")
	})
	further := len(x.want) == len(x.got) && x.change(func(i int, e entry) entry {
		for _, f := range x.r.failed {
			theirs, ours := []any{f.theirs["class"], f.theirs["message"]}, []any{f.ours["class"], f.ours["message"]}
			payload, _ := e["payload"].(map[string]any)
			here, _ := x.got[i]["payload"].(map[string]any)
			is, _ := payload["exception"].([]any)
			mustBe, _ := here["exception"].([]any)
			if ended(e) && slices.Equal(is, theirs) && slices.Equal(mustBe, ours) && !slices.Equal(is, mustBe) {
				return e.with("payload", map[string]any(entry(payload).with("exception", ours).with("exception_object", map[string]any{"$exc": ours})))
			}
			if e.is("raise") && e["class"] == theirs[0] && e["message"] == theirs[1] && x.got[i]["message"] == ours[1] {
				return collection(exceptionsOf(f.ours)).with("op", e["op"]).with("ev", "raise")
			}
		}
		return nil
	})
	return there || further
}

// exceptionsOf are those that were collected, or the only one.
func exceptionsOf(e entry) []any {
	if all, many := e["exceptions"].([]any); many {
		return slices.Clone(all)
	}
	return []any{[]any{e["class"], e["message"]}}
}

// collection is how errors that were collected are written.
func collection(exceptions []any) entry {
	var classes []string
	for _, pair := range exceptions {
		class, _ := pair.([]any)[0].(string)
		classes = append(classes, class)
	}
	return entry{"class": "ActiveSupport::Notifications::InstrumentationSubscriberError",
		"message":    "Exception(s) occurred within instrumentation subscribers: " + strings.Join(classes, ", "),
		"exceptions": exceptions, "cause": classes[0]}
}

// errorBesidePayload: the event has the error, and the payload stays as it was.
func (x *comparison) errorBesidePayload() bool {
	return x.change(func(_ int, e entry) entry {
		payload, _ := e["payload"].(map[string]any)
		if _, failed := payload["exception"]; !failed || !e.is("caller_payload") {
			return nil
		}
		rest := map[string]any{}
		for k, v := range payload {
			if k != "exception" && k != "exception_object" {
				rest[k] = v
			}
		}
		return e.with("payload", rest)
	})
}

// throw: the event of a block that was left by a panic has that as its error.
func (x *comparison) throw() bool {
	if len(x.r.thrown) == 0 || len(x.want) != len(x.got) {
		return false
	}
	panicked := []any{"*tidings.PanicError", "panic: {}"}
	return x.change(func(i int, e entry) entry {
		payload, _ := e["payload"].(map[string]any)
		theirs, _ := x.got[i]["payload"].(map[string]any)
		of, _ := theirs["exception"].([]any)
		if !ended(e) || !x.r.thrown[e.str("name")] || payload["exception"] != nil || !slices.Equal(of, panicked) {
			return nil
		}
		with := entry(payload).with("exception", panicked).with("exception_object", map[string]any{"$exc": panicked})
		return e.with("payload", map[string]any(with))
	})
}

// silencedMatches: Matches asks the Filter, which is how a listener is silenced.
func (x *comparison) silencedMatches() bool {
	asked := x.r.asked
	return x.change(func(_ int, e entry) entry {
		if !e.is("subscribed_to") || len(asked) == 0 {
			return nil
		}
		silenced := asked[0]
		asked = asked[1:]
		if !silenced || e["value"] != true {
			return nil
		}
		return e.with("value", false)
	})
}

// spanName: a span ends under the name that it began with.
func (x *comparison) spanName() bool {
	names := x.r.renamed
	return x.change(func(i int, e entry) entry {
		for n, ren := range names {
			if ended(e) && e["name"] == ren.ended {
				if i+1 == len(x.want) || !ended(x.want[i+1]) || x.want[i+1]["name"] != ren.ended {
					names = slices.Delete(slices.Clone(names), n, n+1)
				}
				return e.with("name", ren.began)
			}
		}
		return nil
	})
}

// resources: there is no such figure for one goroutine.
func (x *comparison) resources() bool {
	return x.change(func(_ int, e entry) (out entry) {
		for _, key := range []string{"cpu_time", "idle_time", "allocations", "gc_time"} {
			if _, there := e[key]; there && e.is("event_new", "recorded", "event") {
				if out == nil {
					out = e.with("", nil)
					delete(out, "")
				}
				delete(out, key)
			}
		}
		return out
	})
}

// noTimes: what has no times has taken none.
func (x *comparison) noTimes() bool {
	return x.change(func(_ int, e entry) entry {
		switch times, _ := e["time"].([]any); {
		case e.is("event_new") && e["duration"] == "error":
			return e.with("duration", 0.0)
		case e.is("event") && slices.Equal(times, []any{"nil", "nil"}) && e["duration_ge0"] != true:
			return e.with("duration_ge0", true)
		}
		return nil
	})
}

// errorReporter: the log has what log subscribers failed with, and OnError the
// rest; it is told the error, the operation and the topic.
func (x *comparison) errorReporter() bool {
	gone := x.drop(func(i int, e entry) bool {
		return e.is("error_report") && i+1 < len(x.want) && x.want[i+1].is("log_error")
	})
	changed := x.change(func(_ int, e entry) entry {
		if !e.is("error_report") || e["class"] == "ArgumentError" {
			return nil
		}
		return entry{"ev": "error_report", "class": e["class"], "message": e["message"]}
	})
	return gone || changed
}

// onePayload: the mistake cannot be made.
func (x *comparison) onePayload() bool {
	return x.drop(func(_ int, e entry) bool { return e.is("error_report") && e["class"] == "ArgumentError" })
}

// allRun: one that fails does not keep the event from the rest.
func (x *comparison) allRun() (some bool) {
	all := x.r.notified
	for i := 0; i < len(x.want) && len(all) > 0; i++ {
		if !x.want[i].outcome("er_notify") && !x.want[i].outcome("er_debug") {
			continue
		}
		n := all[0]
		all = all[1:]
		if i == 0 || !n.raise || !x.want[i].is("raise") || !x.want[i-1].is("emit") {
			continue
		}
		last := slices.IndexFunc(n.to, func(l *reportListener) bool { return l.id == x.want[i-1]["sub"] })
		exceptions := []any{[]any{x.want[i]["class"], x.want[i]["message"]}}
		for _, l := range n.to[last+1:] {
			x.want = slices.Insert(x.want, i, x.want[i-1].with("sub", l.id))
			i, some = i+1, true
			if err := raised(l.spec["raises"]); err != nil {
				e := describe(err)
				exceptions = append(exceptions, []any{e["class"], e["message"]})
			}
		}
		if len(exceptions) > 1 {
			x.want[i] = collection(exceptions).with("ev", "raise").with("op", x.want[i]["op"])
		}
	}
	return some
}

// debugBlock: who wants the event is asked before its block is called, and nothing
// is built for nobody.
func (x *comparison) debugBlock() (some bool) {
	for i := 0; i < len(x.want); i++ {
		if !x.want[i].is("debug_block") {
			continue
		}
		end := i + 1
		for end < len(x.want) && x.want[end].is("filter") {
			end++
		}
		asked := x.want[i+1 : end]
		if end < len(x.want) && x.want[end].is("emit") {
			if len(asked) == 0 {
				continue
			}
			asked = append(slices.Clone(asked), x.want[i])
		}
		x.want, some = slices.Replace(x.want, i, end, slices.Clone(asked)...), true
	}
	return some
}

// ids: each event has one of its own, so what is one here is one there.
func (x *comparison) ids() bool {
	dropped := x.drop(func(_ int, e entry) bool { return e.is("instrumenter_id") })
	theirs, names := map[string]string{}, map[string]string{}
	same := true
	for i, e := range x.got {
		id, ok := strings.CutPrefix(e.txID(), ownID)
		if !ok || i >= len(x.want) {
			continue
		}
		if names[id] == "" {
			names[id] = "tx" + string(rune('1'+len(names)))
		}
		there := x.want[i].txID()
		if x.want[i].str("ev") != e.str("ev") || there == "" {
			continue // the diff shows it
		}
		if theirs[id] == "" {
			theirs[id] = there
		}
		if theirs[id] != there {
			x.r.t.Errorf("%v\nis of an event that is two there: %s and %s", e, theirs[id], there)
		}
		same = same && there == names[id]
	}
	for _, e := range x.want {
		if id := e.txID(); strings.HasPrefix(id, "tx") && strings.Trim(id[2:], "0123456789") == "" {
			e.setTxID("tx")
		}
	}
	for _, e := range x.got {
		if strings.HasPrefix(e.txID(), ownID) {
			e.setTxID("tx")
		}
	}
	return dropped || !same
}

// txID is the id in an entry, wherever it is.
func (e entry) txID() string {
	if args, ok := e["args"].([]any); ok && len(args) > 3 {
		s, _ := args[3].(string)
		return s
	}
	return e.str("tx")
}

func (e entry) setTxID(id string) {
	if args, ok := e["args"].([]any); ok {
		args[3] = id
		return
	}
	e["tx"] = id
}
