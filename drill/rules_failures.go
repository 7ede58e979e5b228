package drill

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

func (j *judge) fateOf(k eventKey) witness.Fate {
	if e := j.plans[k]; e != nil {
		return e.Fate
	}
	return ""
}

// redriven: h came after the dead letters were given to their groups again.
func (j *judge) redriven(h *handling) bool {
	return j.ev.Redrive != nil && h.begin > j.ev.Redrive.At
}

// givesUp returns the subscriptions whose poison becomes dead letters.
func (j *judge) givesUp() (out []Expectation) {
	for _, x := range j.ev.Expect {
		if x.GivesUp {
			out = append(out, x)
		}
	}
	return out
}

// judgeLetters: what was planted to die is one dead letter of each group that
// gives up, and nothing else is any.
func (j *judge) judgeLetters() {
	letters := map[deliveryKey][]Letter{}
	for _, l := range j.ev.Letters {
		k := deliveryKey{eventKey{l.Topic, l.ID}, l.Pattern, l.Group}
		letters[k] = append(letters[k], l)
	}
	planted := 0
	for _, p := range j.sorted {
		for _, x := range j.givesUp() {
			if x.Topic != p.topic || !j.fateOf(p.eventKey).Dies() {
				continue
			}
			if p.state == witness.Accept {
				planted++
			}
			k := deliveryKey{p.eventKey, x.Pattern, x.Group}
			switch n := len(letters[k]); {
			case n == 0 && p.state == witness.Accept:
				j.brokenFor(j.letters, p.intent, k, RuleNoLetter, "planted as %s, accepted, and no dead letter is of it", j.fateOf(p.eventKey))
			case n > 1:
				j.brokenFor(j.letters, p.intent, k, RuleLetter, "%d dead letters are of it", n)
			}
			if n := j.beforeRedrive(k); j.fateOf(p.eventKey) == witness.Deadly && n > j.lim.Begins {
				j.brokenFor(j.letters, p.intent, k, RuleLetter, "begun %d times before it was given up; the bound is %d", n, j.lim.Begins)
			}
			if p.state != witness.Refuse {
				delete(letters, k)
			}
		}
	}
	for k, ls := range letters {
		j.brokenFor(j.letters, 0, k, RuleLetter, "given up after %d attempts and %d deliveries, though nothing was planted in it for this group: %s",
			ls[0].Attempts, ls[0].Deliveries, ls[0].Reason)
	}
	j.letters.Note = fmt.Sprintf("%d planted, %d dead letters", planted, len(j.ev.Letters))
}

func (j *judge) brokenFor(r *Row, at Mono, k deliveryKey, rule, format string, args ...any) {
	j.broken(r, at, Violation{Rule: rule, Topic: k.topic, ID: k.id, Pattern: k.pattern, Group: k.group, Text: fmt.Sprintf(format, args...)})
}

// judgeRedrive: what was given to its group again is handled once, by that group
// and no other, and its letter is gone.
func (j *judge) judgeRedrive() {
	re := j.ev.Redrive
	if re == nil {
		if len(j.ev.Letters) > 0 {
			j.redrive.void = true
			j.void("%d dead letters were not redriven", len(j.ev.Letters))
		}
		return
	}
	due := map[deliveryKey]bool{}
	for _, l := range j.ev.Letters {
		due[deliveryKey{eventKey{l.Topic, l.ID}, l.Pattern, l.Group}] = true
	}
	handled := 0
	for k := range due {
		switch n := j.afterRedrive(k); {
		case n == 0:
			j.brokenFor(j.redrive, re.At, k, RuleRedrive, "given to its group again, and not handled")
		case n > 1:
			j.brokenFor(j.redrive, re.At, k, RuleRedrive, "given to its group again, and handled %d times", n)
		default:
			handled++
		}
	}
	for k := range j.got {
		if !due[k] && j.afterRedrive(k) > 0 && slices.ContainsFunc(j.ev.Letters, func(l Letter) bool { return eventKey{l.Topic, l.ID} == k.eventKey }) {
			j.brokenFor(j.redrive, re.At, k, RuleRedrive, "given to another group again, and handled by this one")
		}
	}
	if re.Done != len(j.ev.Letters) {
		j.broken(j.redrive, re.At, Violation{Rule: RuleRedrive, Text: fmt.Sprintf("%d of %d dead letters were given to their groups again", re.Done, len(j.ev.Letters))})
	}
	for _, l := range re.Left {
		j.brokenFor(j.redrive, re.At, deliveryKey{eventKey{l.Topic, l.ID}, l.Pattern, l.Group}, RuleRedrive, "a dead letter after everything was redriven: %s", l.Reason)
	}
	j.redrive.Note = fmt.Sprintf("%d given again, %d handled, %d letters left", re.Done, handled, len(re.Left))
}

// afterRedrive counts the handlings after the redrive that came to a good end.
func (j *judge) afterRedrive(k deliveryKey) (n int) {
	for _, h := range j.got[k] {
		if j.redriven(h) && h.ok() {
			n++
		}
	}
	return n
}

// beforeRedrive counts the handlings before the redrive, however they ended.
func (j *judge) beforeRedrive(k deliveryKey) (n int) {
	for _, h := range j.got[k] {
		if !j.redriven(h) {
			n++
		}
	}
	return n
}

// judgeFates: what the run was to plant was met by handlers, or it proves nothing.
func (j *judge) judgeFates() {
	met := map[witness.Fate]int{}
	for k, hs := range j.got {
		if f := j.fateOf(k.eventKey); f != "" && slices.ContainsFunc(hs, func(h *handling) bool { return j.suffered(f, h) }) {
			met[f]++
		}
	}
	for _, f := range j.ev.WantFates {
		if met[f] == 0 {
			j.letters.void = true
			j.void("no handler met a %s event", f)
		}
	}
	var notes []string
	for _, f := range slices.Sorted(maps.Keys(met)) {
		notes = append(notes, fmt.Sprintf("%s %d", f, met[f]))
	}
	if len(notes) > 0 {
		j.letters.Note += "; met: " + strings.Join(notes, ", ")
	}
}

// suffered: the handler fared as was planted. A long one has outlasted the ack
// wait; what was published twice is handled as others are; all others came to no good
// end.
func (j *judge) suffered(f witness.Fate, h *handling) bool {
	switch f {
	case witness.Long:
		return j.ev.End != nil && h.ok() && h.end-h.begin > time.Duration(j.ev.End.AckWait)
	case witness.Twice:
		return h.ok()
	}
	return !h.ok()
}

// A receipt is what a process's drain says of one event.
type receipt struct {
	back, unsure int // times it was named so: once for each subscription
	at           Mono
}

func (j *judge) indexLeft(r *Reporter, e *Entry) {
	if j.left[r] == nil {
		j.left[r] = map[eventKey]*receipt{}
	}
	k := eventKey{e.Topic, e.ID}
	x := j.left[r][k]
	if x == nil {
		x = &receipt{at: e.At}
		j.left[r][k] = x
	}
	if e.Left == witness.LeftBack {
		x.back++
	} else {
		x.unsure++
	}
}

// judgeReceipts: what a drain names as handed back is what comes again. That
// nothing else does is for the rules of single events.
func (j *judge) judgeReceipts() {
	again := map[eventKey]int{}
	for k, hs := range j.got {
		before := 1 // deliveries, of which not all were begun: two old workers may hand back the same event
		for _, h := range hs {
			if h.back {
				again[k.eventKey] += max(1, h.attempt-before)
			}
			before = h.attempt
		}
	}
	named, unsure := map[eventKey]int{}, map[eventKey]int{}
	for _, events := range j.left {
		for k, x := range events {
			named[k] += x.back
			unsure[k] += x.unsure
		}
	}
	total := 0
	for r, events := range j.left {
		for k, x := range events {
			total += x.back
			if n := again[k]; n < named[k] || n > named[k]+unsure[k] {
				j.broken(j.receipts, x.at, Violation{Rule: RuleReceipt, Topic: k.topic, ID: k.id, PID: r.PID,
					Text: fmt.Sprintf("named %d times as handed back and %d times as unconfirmed, delivered again %d times", named[k], unsure[k], n)})
			}
		}
	}
	if len(j.left) > 0 {
		j.receipts.Note = fmt.Sprintf("%d processes named %d events as handed back", len(j.left), total)
	}
	if cut := slices.ContainsFunc(j.ev.Deploys, func(d Deploy) bool { return d.Cut }); cut && total == 0 {
		j.receipts.void = true
		j.void("no drain had to hand anything back")
	}
}

// deathKind is the kind of phase that answers for the end of a process.
func (j *judge) deathKind(r *Reporter) Kind {
	if slices.ContainsFunc(j.ev.Crashes, func(k Kill) bool { return k.PID == r.PID }) {
		return Crashes
	}
	if i := slices.IndexFunc(j.ev.CutOff, func(k Kill) bool { return k.PID == r.PID }); i >= 0 {
		return j.cellOf(j.ev.CutOff[i])
	}
	return Kills
}

// firstAgain says how soon after a kill -9 the first of its events came again.
func (j *judge) firstAgain() string {
	var waits []time.Duration
	for _, k := range j.ev.Kills {
		first := Mono(0)
		for _, hs := range j.got {
			for i, h := range hs[min(1, len(hs)):] {
				if hs[i].rep.PID == k.PID && hs[i].end == 0 && h.begin > k.Sent && (first == 0 || h.begin < first) {
					first = h.begin
				}
			}
		}
		if first != 0 {
			waits = append(waits, first-k.Sent)
		}
	}
	if len(waits) == 0 {
		return ""
	}
	return fmt.Sprintf(" (the first redelivery %v later)", slices.MaxFunc(waits, cmp.Compare).Round(time.Millisecond))
}
