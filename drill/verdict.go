package drill

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
)

// A Result is the last word of a verdict.
type Result string

// The results, in the order in which one overrules the other.
const (
	Broken Result = "BROKEN" // a promise was not held; exit status 1
	Void   Result = "VOID"   // the run proves nothing; exit status 2
	Kept   Result = "KEPT"   // every promise held; exit status 0
)

// ExitCode is what a command that prints r exits with.
func (r Result) ExitCode() int {
	switch r {
	case Kept:
		return 0
	case Broken:
		return 1
	}
	return 2
}

// A Verdict says what became of each promise.
type Verdict struct {
	Result     Result      `json:"result"`
	Dir        string      `json:"dir,omitempty"` // holds journals and logs
	Rows       []*Row      `json:"promises"`
	Violations []Violation `json:"violations"`
	Void       []string    `json:"void"` // why the run proves nothing
	Publishers []Publisher `json:"publishers"`
	Moves      []Move      `json:"moves,omitempty"` // of the hub
	InFlight   int         `json:"in_flight"`       // events that leaving workers began after they were asked to go
	Evidence   *Evidence   `json:"evidence,omitempty"`
}

// A Row is one promise. Counts are of (event, group, pattern).
type Row struct {
	Promise     string `json:"promise"`
	Sent        int    `json:"sent"`
	Accepted    int    `json:"accepted"`
	InDoubt     int    `json:"in_doubt"`
	Refused     int    `json:"refused"`
	Spooled     int    `json:"spooled"` // accepted while there was no hub
	Handled     int    `json:"handled"`
	Lost        int    `json:"lost"`
	Doubled     int    `json:"doubled"`
	Retried     int    `json:"retried"`     // called again after the handler had failed
	Redelivered int    `json:"redelivered"` // delivered again for a reason that the promise names
	Forgiven    int    `json:"forgiven"`    // lost where nothing is promised
	Gap         ms     `json:"longest_gap_ms"`
	Delay       ms     `json:"longest_delay_ms"`
	Violations  int    `json:"violations"`
	Result      string `json:"result"` // "ok", "BROKEN" or "void"
	Note        string `json:"note,omitempty"`

	counts bool // has figures
	cell   bool // of a matrix, which is a table of its own
	void   bool
}

// A Violation is one way in which one promise was broken.
type Violation struct {
	Promise string `json:"promise"`
	Rule    string `json:"rule"`
	Topic   string `json:"topic,omitempty"`
	ID      string `json:"id,omitempty"`
	Pattern string `json:"pattern,omitempty"`
	Group   string `json:"group,omitempty"`
	PID     int    `json:"pid,omitempty"`
	At      ms     `json:"at_ms"` // since the run began
	Text    string `json:"text"`
}

// The rules that a violation can name.
const (
	RuleLost        = "lost"
	RuleUnfinished  = "begun, never ended"
	RuleFailed      = "handler failed"
	RuleDoubled     = "doubled"
	RuleRedelivered = "redelivered without a fault"
	RuleBudget      = "redelivery budget"
	RuleEarlyAck    = "acknowledged before handled"
	RuleLate        = "late"
	RuleNotRetried  = "failed, not retried"
	RuleNoLetter    = "poison without a dead letter"
	RuleLetter      = "dead letter"
	RuleRedrive     = "redriven"
	RuleHeld        = "passed a failing event of its key"
	RuleReceipt     = "receipt"
	RuleCounts      = "counts"
	RuleGap         = "longest gap"
	RuleDeploy      = "deploy"
	RuleRefused     = "refused, yet delivered"
	RuleUnknown     = "never published"
	RuleUnexpected  = "unexpected subscription"
	RuleOrder       = "out of order"
	RuleLedger      = "ledger"
	RuleEnd         = "end state"
	RuleProcess     = "process"
	RuleStream      = "stream"
	RuleHub         = "touched the hub"
	RuleUnsynced    = "unsynced"
	RuleEffect      = "effect of a signal"
)

// lookahead attributes an event to the fault that met it on its way.
const lookahead = 150 * time.Millisecond

type eventKey struct{ topic, id string }

type publication struct {
	eventKey
	publisher               string
	n                       int
	rep                     *Reporter
	scheduled, intent, done Mono
	state                   witness.Kind // Accept, Refuse or Doubt
}

type deliveryKey struct {
	eventKey
	pattern, group string
}

type reporterKey struct {
	rep *Reporter
	deliveryKey
}

type handling struct {
	rep             *Reporter
	begin, end, ack Mono
	attempt         int
	failed          string
	double          bool // found to be one of several
	early           bool // its process had an acknowledgement on record before it began
	late            bool // a redelivery that took the place of a first delivery
	back            bool // redelivered because a receipt named it
}

func (h *handling) ok() bool { return h.end != 0 && h.failed == "" }

// program is a subscription of all the processes that run one program.
type program struct{ app, topic, pattern, group string }

type rowKey struct {
	durable bool
	kind    Kind
}

type judge struct {
	ev    *Evidence
	lim   Limits
	led   *Ledger
	v     *Verdict
	start Mono

	pubs   map[eventKey]*publication
	sorted []*publication // by intent
	got    map[deliveryKey][]*handling
	reps   map[int]*Reporter // subscribers by pid
	killed map[*Reporter]Kill
	acked  map[reporterKey]bool // acknowledged by a process that has not begun it
	plans  map[eventKey]*Entry
	left   map[*Reporter]map[eventKey]*receipt
	rows   map[rowKey]*Row

	programs map[program]bool // that have begun something
	losses   []loss           // of live events
	stalls   []time.Duration  // by outage

	dead     map[*Reporter]Death // publishers that were killed
	possible map[eventKey]bool   // doubled, as was announced

	accepted, order, keys, letters, redrive, receipts, counts, deploys, ledger, end, effects, synced, kept, moved, evidence *Row
}

// Judge compares what the processes wrote with what was done to them. It changes
// neither.
func Judge(led *Ledger, ev *Evidence, lim Limits) *Verdict {
	j := &judge{
		ev: ev, lim: lim, led: led, v: &Verdict{Evidence: ev},
		pubs: map[eventKey]*publication{}, got: map[deliveryKey][]*handling{},
		reps: map[int]*Reporter{}, killed: map[*Reporter]Kill{}, acked: map[reporterKey]bool{}, rows: map[rowKey]*Row{},
		plans: map[eventKey]*Entry{}, left: map[*Reporter]map[eventKey]*receipt{}, programs: map[program]bool{},
		dead: map[*Reporter]Death{}, possible: map[eventKey]bool{}, stalls: make([]time.Duration, len(ev.Outages)),
	}
	j.makeRows()
	j.index()
	j.judgeEvents()
	j.judgeStrangers()
	j.judgeOrder()
	j.judgeKeys()
	j.judgeLetters()
	j.judgeRedrive()
	j.judgeReceipts()
	j.judgeReports()
	j.judgeReleases()
	j.judgeGaps()
	j.judgeBudgets()
	j.judgeLedger()
	j.judgeEnd()
	j.judgeSynced()
	j.judgeKept()
	j.judgeMoves()
	j.judgeEvidence()
	j.judgeSpools()
	j.judgeCells()
	j.judgePublishers()
	j.conclude()
	return j.v
}

func (j *judge) makeRows() {
	if len(j.ev.Phases) > 0 {
		j.start = j.ev.Phases[0].Start
	}
	row := func(name string, counts bool) *Row {
		r := &Row{Promise: name, counts: counts}
		j.v.Rows = append(j.v.Rows, r)
		return r
	}
	for _, durable := range []bool{false, true} {
		for _, kind := range kinds {
			if slices.ContainsFunc(j.ev.Phases, func(p Phase) bool { return p.Kind == kind }) {
				j.rows[rowKey{durable, kind}] = row(class(durable)+", "+string(kind), true)
			}
		}
	}
	for _, c := range j.ev.Cells {
		if c.Nothing != "" {
			continue
		}
		for _, durable := range []bool{false, true} {
			r := row(class(durable)+", "+c.Name, true)
			r.cell = true
			j.rows[rowKey{durable, Kind(c.Name)}] = r
		}
	}
	j.accepted = row("durable, accepted = handled", true)
	j.order = row("order per publisher", false)
	j.keys = row("order per key", false)
	j.letters = row("dead letters = what was planted", false)
	j.redrive = row("redriven once, to its group", false)
	j.receipts = row("receipts of drains", false)
	j.counts = row("counts of receipts = the ledger's", false)
	if len(j.ev.Releases) > 0 {
		j.deploys = row("deploys end as they must", false)
	}
	j.ledger = row("ledger complete", false)
	j.end = row("nothing left behind", false)
	if len(j.ev.Cells) > 0 {
		j.effects = row("signals do what the table says", false)
	}
	if j.ev.Synced != nil {
		j.synced = row("acknowledged = on the disk", false)
	}
	if slices.ContainsFunc(j.ev.Deploys, func(d Deploy) bool { return d.Hub != nil }) {
		j.kept = row("deploys leave the hub alone", false)
	}
	if slices.ContainsFunc(j.ev.Outages, func(o Outage) bool { return o.Host != "" }) {
		j.moved = row("the hub is soon there again", false)
	}
	j.evidence = row("evidence", false)
}

func class(durable bool) string {
	if durable {
		return "durable"
	}
	return "live"
}

func (j *judge) phaseAt(t Mono) Phase {
	at := Phase{Kind: Steady}
	for _, p := range j.ev.Phases {
		if p.Start > t {
			break
		}
		at = p
	}
	return at
}

// rowAt is the row of a class that answers for time t.
func (j *judge) rowAt(durable bool, t Mono) *Row {
	return j.row(durable, j.phaseAt(t).row())
}

func (j *judge) row(durable bool, kind Kind) *Row {
	if r := j.rows[rowKey{durable, kind}]; r != nil {
		return r
	}
	return j.evidence // a fault without a phase of its own
}

func (j *judge) broken(r *Row, at Mono, v Violation) {
	v.Promise = r.Promise
	if at != 0 {
		v.At = ms(at - j.start)
	}
	r.Violations++
	j.v.Violations = append(j.v.Violations, v)
}

func (j *judge) void(format string, args ...any) {
	j.v.Void = append(j.v.Void, fmt.Sprintf(format, args...))
	j.evidence.void = true
}

// conclude gives each row, and the whole, its word.
func (j *judge) conclude() {
	for _, s := range j.ev.Broken {
		j.broken(j.evidence, 0, Violation{Rule: RuleProcess, Text: s})
	}
	for _, s := range j.ev.Void {
		j.void("%s", s)
	}
	slices.SortStableFunc(j.v.Violations, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	j.v.Result = Kept
	for _, r := range j.v.Rows {
		switch {
		case r.Violations > 0:
			r.Result = string(Broken)
		case r.void:
			r.Result = "void"
		default:
			r.Result = "ok"
		}
	}
	if len(j.v.Void) > 0 {
		j.v.Result = Void
	}
	// A loss that was seen is a loss, however poor the rest of the run.
	if len(j.v.Violations) > 0 {
		j.v.Result = Broken
	}
}

// index sorts the entries of all journals by event.
func (j *judge) index() {
	for _, k := range slices.Concat(j.ev.Kills, j.ev.Crashes, j.ev.CutOff) {
		for _, r := range j.led.Reporters {
			if r.PID == k.PID {
				j.killed[r] = k
			}
		}
	}
	for _, x := range j.ev.Deaths {
		for _, r := range j.led.Reporters {
			if r.PID == x.PID {
				j.dead[r] = x
			}
		}
	}
	for _, r := range j.led.Reporters {
		if r.Role == "subscriber" {
			j.reps[r.PID] = r
		}
		for i := range r.Entries {
			j.indexEntry(r, &r.Entries[i])
		}
	}
	for _, hs := range j.got {
		slices.SortStableFunc(hs, func(a, b *handling) int { return cmp.Compare(a.begin, b.begin) })
	}
	slices.SortStableFunc(j.sorted, func(a, b *publication) int { return cmp.Compare(a.intent, b.intent) })
}

func (j *judge) indexEntry(r *Reporter, e *Entry) {
	key := eventKey{e.Topic, e.ID}
	switch e.Kind {
	case witness.Plan:
		j.plans[key] = e
	case witness.Left:
		j.indexLeft(r, e)
	case witness.Intent:
		j.indexIntent(r, e)
	case witness.Accept, witness.Refuse, witness.Doubt:
		p := j.pubs[key]
		if p == nil || p.rep != r || p.done != 0 {
			j.broken(j.ledger, e.At, Violation{Rule: RuleLedger, Topic: e.Topic, ID: e.ID, PID: r.PID, Text: "an answer without a question in " + r.File})
			return
		}
		p.state, p.done = e.Kind, e.At
	case witness.Begin:
		k := deliveryKey{key, e.Pattern, e.Group}
		j.programs[program{r.App, e.Topic, e.Pattern, e.Group}] = true
		j.got[k] = append(j.got[k], &handling{rep: r, begin: e.At, attempt: e.Attempt, early: j.acked[reporterKey{r, k}]})
	case witness.End, witness.Ack, witness.Nack:
		j.indexSettled(r, e, deliveryKey{key, e.Pattern, e.Group})
	}
}

func (j *judge) indexIntent(r *Reporter, e *Entry) {
	p := &publication{eventKey: eventKey{e.Topic, e.ID}, rep: r, scheduled: e.Scheduled, intent: e.At, state: witness.Doubt}
	var ok bool
	p.publisher, p.n, ok = witness.SplitID(e.ID)
	if !ok || j.pubs[p.eventKey] != nil {
		j.broken(j.ledger, e.At, Violation{Rule: RuleLedger, Topic: e.Topic, ID: e.ID, PID: r.PID, Text: "not an id that is used once"})
		return
	}
	j.pubs[p.eventKey] = p
	j.sorted = append(j.sorted, p)
}

// indexSettled gives an end or an acknowledgement to the latest begin of the same
// process that has none.
func (j *judge) indexSettled(r *Reporter, e *Entry, k deliveryKey) {
	begun := false
	for _, h := range slices.Backward(j.got[k]) {
		if h.rep != r {
			continue
		}
		begun = true
		switch {
		case e.Kind == witness.End && h.end == 0:
			h.end, h.failed = e.At, e.Err
			return
		case e.Kind == witness.Ack && h.ack == 0:
			h.ack = e.At
			return
		case e.Kind == witness.Nack:
			return
		}
	}
	// An acknowledgement of something this process never began: it was settled
	// unhandled, for instance because it was known to have been handled before.
	// Should it begin it later, then it was settled too early.
	if e.Kind == witness.Ack && !begun {
		j.acked[reporterKey{r, k}] = true
	}
	if e.Kind == witness.End {
		j.broken(j.ledger, e.At, Violation{Rule: RuleLedger, Topic: e.Topic, ID: e.ID, PID: r.PID, Text: "an end without a begin in " + r.File})
	}
}
