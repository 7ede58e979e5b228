package drill

import (
	"fmt"
	"slices"

	"github.com/tidings-go/tidings/drill/witness"
)

// keyed reports whether an entry is of a subscription that keeps order by key.
func (j *judge) keyed(e Entry) bool {
	return slices.ContainsFunc(j.ev.Expect, func(x Expectation) bool {
		return x.Keyed && x.Topic == e.Topic && x.Pattern == e.Pattern && x.Group == e.Group
	})
}

func (j *judge) keyOf(e Entry) string {
	if p := j.plans[eventKey{e.Topic, e.ID}]; p != nil {
		return p.Key
	}
	return ""
}

// lane is a key of a subscription in one process.
type lane struct{ topic, pattern, group, key string }

// judgeKeys: within a process, events of one key are worked on one after the
// other, and one that fails and is called again is followed by none meanwhile.
func (j *judge) judgeKeys() {
	waits, keys := 0, map[string]bool{}
	for _, r := range j.led.Reporters {
		// What a process was asked to leave behind may be begun anywhere.
		later := beginsLeft(r)
		holder := map[lane]*Entry{}
		for i := range r.Entries {
			e := &r.Entries[i]
			if e.Kind != witness.Begin && e.Kind != witness.End || !j.keyed(*e) {
				continue
			}
			k := j.keyOf(*e)
			keys[k] = true
			l := lane{e.Topic, e.Pattern, e.Group, k}
			switch h := holder[l]; {
			case e.Kind == witness.Begin:
				later[deliveryOf(e)]--
				if h != nil && h.ID != e.ID {
					j.broken(j.keys, e.At, Violation{Rule: RuleHeld, Topic: e.Topic, ID: e.ID, Pattern: e.Pattern, Group: e.Group, PID: r.PID,
						Text: fmt.Sprintf("begun while %s of the same key %s %s", h.ID, k, at(h))})
					continue
				}
				holder[l] = e
			case h == nil || h.ID != e.ID:
				// Named when it was begun.
			case e.Err != "" && later[deliveryOf(e)] > 0 && !j.dropped(r, e):
				holder[l] = e // until it is begun again
				waits++
			default:
				delete(holder, l)
			}
		}
	}
	if len(keys) > 0 && j.keys.Note == "" {
		j.keys.Note = fmt.Sprintf("%d keys, held %d times for a retry", len(keys), waits)
	}
}

func at(h *Entry) string {
	if h.Kind == witness.End {
		return "had failed and waited for its retry"
	}
	return "was being worked on"
}

func deliveryOf(e *Entry) deliveryKey {
	return deliveryKey{eventKey{e.Topic, e.ID}, e.Pattern, e.Group}
}

// beginsLeft counts the begins of each event in a process.
func beginsLeft(r *Reporter) map[deliveryKey]int {
	n := map[deliveryKey]int{}
	for i := range r.Entries {
		if e := &r.Entries[i]; e.Kind == witness.Begin {
			n[deliveryOf(e)]++
		}
	}
	return n
}

// dropped: the failure was the event's last before its redrive, which begins it
// anew.
func (j *judge) dropped(r *Reporter, e *Entry) bool {
	re := j.ev.Redrive
	if re == nil || e.At > re.At {
		return false
	}
	for i := range r.Entries {
		x := &r.Entries[i]
		if x.Kind == witness.Begin && x.At > e.At && deliveryOf(x) == deliveryOf(e) {
			return x.At > re.At
		}
	}
	return false
}
