package tidings_test

import (
	"slices"
)

// order: there, listeners are grouped by kind, in the order of each kind's first,
// and those that can be silenced come after all others; here there is one list.
// What was observed is put in the order of the list, if it is in the order that
// their rules say, and in no other.
func (x *comparison) order() (some bool) {
	for i := range x.want {
		if ended(x.want[i]) || x.want[i].is("start") {
			some = x.list(i) || some
		}
	}
	return some
}

// turn is what one listener writes of an event, and what it does then.
type turn struct {
	by    *listener
	kind  string
	trace []entry
}

// list puts the turns that begin at i in order.
func (x *comparison) list(i int) bool {
	turns, end := x.turns(i)
	if len(turns) < 2 {
		return false
	}
	ours := slices.Clone(turns)
	slices.SortStableFunc(ours, func(a, b turn) int { return rank(a.by, b.by) })
	if same(turns, ours) || !same(turns, theirs(ours)) {
		return false
	}
	var out []entry
	for _, t := range ours {
		out = append(out, t.trace...)
	}
	copy(x.want[i:end], out)
	if end < len(x.want) {
		x.reorderErrors(end, turns, ours)
	}
	return true
}

func same(a, b []turn) bool {
	return slices.EqualFunc(a, b, func(a, b turn) bool { return a.by == b.by })
}

// theirs is the order that rules 11 and 12 make of the list.
func theirs(list []turn) (out []turn) {
	var last []turn
	for _, t := range list {
		if t.by.silencable {
			last = append(last, t)
		} else {
			out = append(out, t)
		}
	}
	list, out = append(out, last...), nil
	for len(list) > 0 {
		kind := list[0].kind
		var rest []turn
		for _, t := range list {
			if t.kind == kind {
				out = append(out, t)
			} else {
				rest = append(rest, t)
			}
		}
		list = rest
	}
	return out
}

// kinds of listeners, as they are grouped there.
var kinds = map[string]string{"timed": "timed", "splat": "timed", "monotonic": "monotonic", "event": "event",
	"event_object": "event", "evented": "evented", "evented_publish": "evented", "evented_publish_event": "evented",
	"evented_call": "evented", "method": "event"}

// turns finds what the listeners of one event have written, from i on: entries of
// one name and phase, each by another listener, and what belongs to each.
func (x *comparison) turns(i int) (out []turn, end int) {
	first := x.want[i]
	inside := 0 // blocks that are open in what a listener does
	for end = i; end < len(x.want); end++ {
		e := x.want[end]
		by := x.r.listener(e)
		mine := e.is("start") == first.is("start") && (ended(e) || e.is("start")) && e.eventName() == first.eventName() && by != nil
		switch {
		case inside == 0 && mine && !slices.ContainsFunc(out, func(t turn) bool { return t.by == by }):
			out = append(out, turn{by, kinds[by.kind], []entry{e}})
			continue
		case len(out) == 0, !x.belongs(e, out[len(out)-1], inside):
			return out, end
		case e.is("block"):
			inside++
		case inside > 0 && e.outcome("instrument"):
			inside--
		}
		last := &out[len(out)-1]
		last.trace = append(last.trace, e)
	}
	return out, end
}

// belongs reports whether e is something that the listener of the turn does.
func (x *comparison) belongs(e entry, t turn, inside int) bool {
	switch {
	case e.is("error_report", "log_error"):
		return true
	case t.by.spec["do"] == nil:
		return false
	case inside > 0:
		return true
	case e.is("return", "raise"):
		return slices.ContainsFunc(t.by.spec.ops("do"), func(o op) bool {
			return o.str("op") == e.str("op") && (e["name"] == nil || e["name"] == o["name"]) && (e.is("return") || o.yes("catch"))
		})
	}
	return true
}

// listener is who has written the entry.
func (r *replay) listener(e entry) *listener {
	if e.is("method") {
		for _, a := range r.everAttached {
			if a.class == e["self_class"] {
				return a.listener
			}
		}
		return nil
	}
	return r.subs[e.str("sub")]
}

// reorderErrors puts what was collected of the turns in their new order.
func (x *comparison) reorderErrors(at int, before, after []turn) {
	all, _ := x.want[at]["exceptions"].([]any)
	var failed []turn
	for _, t := range before {
		if t.by.spec["raises"] != nil {
			failed = append(failed, t)
		}
	}
	if len(all) == 0 || len(failed) != len(all) {
		return
	}
	var out []any
	for _, t := range after {
		if i := slices.IndexFunc(failed, func(f turn) bool { return f.by == t.by }); i >= 0 {
			out = append(out, all[i])
		}
	}
	x.want[at] = collection(out).with("ev", "raise").with("op", x.want[at]["op"])
}
