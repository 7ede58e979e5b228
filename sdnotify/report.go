//go:build unix

package sdnotify

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// reportKey begins with X_, as systemd asks of keys that are not its own: it
// ignores the line.
const reportKey = "X_TIDINGS_REPORT="

// reportRoom is what one datagram leaves for subscriptions and ids, reportText what
// a text may take of it, as JSON: a subscription always fits.
const (
	reportRoom = MaxDatagram - 256
	reportText = 900
)

// A Report is what a worker built on package worker tells its master beyond
// systemd's protocol. Any program may send one.
type Report struct {
	Version string `json:"version,omitempty"` // of the program
	// Until is the first 10 ms of CLOCK_MONOTONIC of which Active of the subscriptions
	// does not tell all. It is some time until a manager hears of it. 0: not known.
	Until int64 `json:"until,omitempty"`
	// Final: the worker has drained and takes nothing any more. Counts are exact, and
	// no report follows.
	Final         bool                 `json:"final,omitempty"`
	Subscriptions []SubscriptionReport `json:"subscriptions,omitempty"`
	Left          []LeftReport         `json:"left,omitempty"` // of a Final one: one for each pattern and group that left events
}

// A SubscriptionReport is the state of one subscription of a worker. Counts are
// since it began.
//
// Received counts receptions: an event that the broker delivers twice is received
// twice, and one that waits for its retry inside the process is received once,
// however often it is tried. Each reception has one outcome, so of a Final report
//
//	Received = Handled + GaveUp + Returned + Expired + Dropped + Left
//
// and before that the difference is what waits (Queued) and runs (Running).
type SubscriptionReport struct {
	Name    string `json:"name,omitempty"`
	Pattern string `json:"pattern"`
	Group   string `json:"group,omitempty"` // none: every process gets each event
	Durable bool   `json:"durable,omitempty"`
	Ready   bool   `json:"ready"`   // the broker has shown that its events flow
	Queued  int    `json:"queued"`  // events taken that wait for a handler
	Running uint64 `json:"running"` // handlers that run
	Hung    int    `json:"hung,omitempty"`

	Received    uint64 `json:"received"`
	Redelivered uint64 `json:"redelivered,omitempty"` // of Received, those that the broker had delivered before, here or elsewhere
	Handled     uint64 `json:"handled"`               // the handler returned nil
	GaveUp      uint64 `json:"gave_up,omitempty"`     // failed for good: dead letters, and other events whose last attempt failed
	Returned    uint64 `json:"returned,omitempty"`    // durable: went back to the broker while it lived, to be delivered again: for a retry, as a rule
	Expired     uint64 `json:"expired,omitempty"`     // came too late to be handled
	Dropped     uint64 `json:"dropped,omitempty"`     // by its queue: full, or at the end; not durable
	Left        uint64 `json:"left,omitempty"`        // taken, and without an outcome when the subscription ended; 0 before

	Failed uint64 `json:"failed,omitempty"` // attempts, not events
	Acked  uint64 `json:"acked,omitempty"`  // durable: of Handled, those whose acknowledgement the broker has confirmed

	// Lag is how many events wait at the broker that no process of the group has been
	// given, as the broker said last; if LagKnown.
	Lag      uint64 `json:"lag,omitempty"`
	LagKnown bool   `json:"lag_known,omitempty"`

	// Active says in which 10 ms of the time since the report before events came from
	// the transport: bit i, counted from the highest of the first hexadecimal digit,
	// is 10 ms number ActiveFrom+i of CLOCK_MONOTONIC.
	ActiveFrom int64  `json:"active_from,omitempty"`
	Active     string `json:"active,omitempty"`
}

// A LeftReport names the durable events that a drain could not settle.
type LeftReport struct {
	Pattern     string   `json:"pattern"`
	Group       string   `json:"group,omitempty"`
	IDs         []string `json:"ids,omitempty"`         // handed back: the broker delivers them again
	Unconfirmed []string `json:"unconfirmed,omitempty"` // handled, but the broker has not confirmed it: it may deliver them again
}

// A reportPart is one datagram's share of a Report.
type reportPart struct {
	Part  int `json:"part"` // from 1
	Parts int `json:"parts"`
	Report
}

// Send sends the report, in as many datagrams as it takes, as [Notify] does. Two
// reports must not be sent at once. Texts that take more than 900 bytes as JSON are
// cut, of which ids are none that Tidings makes.
func (r Report) Send() error {
	lines, err := r.lines()
	for _, line := range lines {
		if err == nil {
			err = Notify(line)
		}
	}
	return err
}

func (r Report) lines() ([]string, error) {
	p := packer{}
	p.open(reportPart{Report: Report{Version: cut(r.Version), Until: r.Until, Final: r.Final}})
	for _, s := range r.Subscriptions {
		s.Name, s.Pattern, s.Group = cut(s.Name), cut(s.Pattern), cut(s.Group)
		p.addSubscription(s)
	}
	for _, l := range r.Left {
		p.addLeft(l)
	}
	var lines []string
	for i := range p.parts {
		p.parts[i].Part, p.parts[i].Parts = i+1, len(p.parts)
		text, err := json.Marshal(p.parts[i])
		if err != nil {
			return nil, fmt.Errorf("sdnotify: report: %w", err)
		}
		lines = append(lines, reportKey+string(text))
	}
	return lines, nil
}

// A packer fills datagrams.
type packer struct {
	parts []reportPart
	room  int // in the last
}

func (p *packer) open(part reportPart) {
	p.parts = append(p.parts, part)
	p.room = reportRoom - size(part)
}

// last is where so many bytes of JSON, and a comma, fit.
func (p *packer) last(bytes int) *reportPart {
	if p.room < bytes+1 {
		p.open(reportPart{})
	}
	p.room -= bytes + 1
	return &p.parts[len(p.parts)-1]
}

func (p *packer) addSubscription(s SubscriptionReport) {
	to := p.last(size(s))
	to.Subscriptions = append(to.Subscriptions, s)
}

// addLeft splits what one datagram cannot hold; Reports puts it together.
func (p *packer) addLeft(l LeftReport) {
	head := LeftReport{Pattern: cut(l.Pattern), Group: cut(l.Group), IDs: []string{""}, Unconfirmed: []string{""}}
	most := size(head)
	head.IDs, head.Unconfirmed = nil, nil
	begun := false
	into := func(id string) *LeftReport {
		n := size(id) + 1
		if !begun || p.room < n {
			to := p.last(most + n)
			to.Left = append(to.Left, head)
			begun = true
		} else {
			p.room -= n
		}
		left := p.parts[len(p.parts)-1].Left
		return &left[len(left)-1]
	}
	for _, id := range l.IDs {
		id = cut(id)
		to := into(id)
		to.IDs = append(to.IDs, id)
	}
	for _, id := range l.Unconfirmed {
		id = cut(id)
		to := into(id)
		to.Unconfirmed = append(to.Unconfirmed, id)
	}
}

// size is what a value takes as JSON.
func size(v any) int {
	text, err := json.Marshal(v)
	if err != nil {
		return 0 // said when it is sent
	}
	return len(text)
}

// cut shortens a text to what it may take as JSON.
func cut(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= reportText/6 { // a byte is at most \u00XX
		return text
	}
	room := reportText
	for i, r := range text {
		n := utf8.RuneLen(r)
		if r < ' ' || strings.ContainsRune("\"\\<>&\u2028\u2029", r) {
			n = 6
		}
		if room -= n; room < 0 {
			return text[:i] + "…"
		}
	}
	return text
}

// Reports puts reports together from the datagrams of one service.
type Reports struct {
	parts int
	got   Report
}

// Take looks at a message for a part of a report and returns the report that it
// completes, if it does. Parts that do not follow each other are dropped: the
// next report is whole. A line that cannot be read is an error.
func (r *Reports) Take(m Message) (*Report, error) {
	for _, line := range m.Other {
		text, is := strings.CutPrefix(line, reportKey)
		if !is {
			continue
		}
		var p reportPart
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			*r = Reports{}
			return nil, fmt.Errorf("sdnotify: %s: %w", strings.TrimSuffix(reportKey, "="), err)
		}
		if p.Part == 1 {
			*r = Reports{got: Report{Version: p.Version, Until: p.Until, Final: p.Final}}
		}
		if p.Part != r.parts+1 || p.Part > p.Parts {
			*r = Reports{}
			continue
		}
		r.parts = p.Part
		r.got.Subscriptions = append(r.got.Subscriptions, p.Subscriptions...)
		for _, l := range p.Left {
			r.got.addLeft(l)
		}
		if p.Part == p.Parts {
			whole := r.got
			*r = Reports{}
			return &whole, nil
		}
	}
	return nil, nil
}

// addLeft puts what is of one subscription together again.
func (r *Report) addLeft(l LeftReport) {
	if n := len(r.Left); n > 0 && r.Left[n-1].Pattern == l.Pattern && r.Left[n-1].Group == l.Group {
		last := &r.Left[n-1]
		last.IDs, last.Unconfirmed = append(last.IDs, l.IDs...), append(last.Unconfirmed, l.Unconfirmed...)
		return
	}
	r.Left = append(r.Left, l)
}
