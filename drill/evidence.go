package drill

import (
	"encoding/json"
	"time"
)

// Mono is a time on CLOCK_MONOTONIC, as journals have it. Zero means never.
type Mono = time.Duration

// Kind is what happened in a phase of a run.
type Kind string

// The kinds of phases, each with promises of its own.
const (
	Steady  Kind = "steady"
	Deploys Kind = "deploy"
	Kills   Kind = "kill -9"
	Outages Kind = "hub restart"
)

// A Phase lasts until the next one starts.
type Phase struct {
	Name  string `json:"name"`
	Kind  Kind   `json:"kind"`
	Start Mono   `json:"start"`
}

// An Expectation is a subscription that must get every event of a topic once.
type Expectation struct {
	Topic   string `json:"topic"`
	Pattern string `json:"pattern"`
	Group   string `json:"group"`
	Durable bool   `json:"durable"`
}

// A Deploy is one replacement of all workers.
type Deploy struct {
	Name     string `json:"name"`
	Signal   string `json:"signal"` // "HUP" or "USR2 and QUIT"
	Start    Mono   `json:"start"`
	NewReady Mono   `json:"new_ready"` // when the last new worker was ready
	OldGone  Mono   `json:"old_gone"`  // when the last old process had exited
	Old      []int  `json:"old"`       // pids of old workers, and of the old master after USR2
	New      []int  `json:"new"`       // pids of new workers
	Failure  string `json:"failure,omitempty"`
}

// A Kill is one kill -9 of a worker.
type Kill struct {
	PID     int  `json:"pid"`
	Sent    Mono `json:"sent"`
	Noticed Mono `json:"noticed"` // when its master had reaped it
	InHand  int  `json:"in_hand"` // events it had begun and not ended
}

// An Outage is one stop and restart of the hub.
type Outage struct {
	Down   Mono        `json:"down"`   // just before the signal to stop was sent
	Gone   Mono        `json:"gone"`   // when its process had exited
	Up     Mono        `json:"up"`     // when it answered again
	Back   Mono        `json:"back"`   // when every client was seen connected again
	Before int         `json:"before"` // client connections before
	Closed int         `json:"closed"` // client connections the hub said it closed
	After  int         `json:"after"`  // client connections once all were back
	Old    StreamState `json:"old"`
	New    StreamState `json:"new"`
}

// A StreamState identifies a stream and says how far it got.
type StreamState struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	LastSeq uint64    `json:"last_seq"`
}

// An Exit is the end of a worker or master.
type Exit struct {
	PID    int    `json:"pid"`
	At     Mono   `json:"at"`
	Code   int    `json:"code"`
	Signal string `json:"signal,omitempty"` // "killed" for kill -9
}

// A Quit is a request to a worker to go.
type Quit struct {
	PID int  `json:"pid"`
	At  Mono `json:"at"`
}

// EndState is what the broker held once the publishers had stopped and the
// subscribers had had time to finish.
type EndState struct {
	Pending    uint64 `json:"pending"`     // stored and not delivered, over all consumers
	AckPending uint64 `json:"ack_pending"` // delivered and not acknowledged
	Stored     uint64 `json:"stored"`      // messages the streams ever stored for the expected topics
}

// Evidence is what was done to the processes and seen of them, apart from their
// journals.
type Evidence struct {
	Expect  []Expectation `json:"expect"`
	Phases  []Phase       `json:"phases"`
	Deploys []Deploy      `json:"deploys"`
	Kills   []Kill        `json:"kills"`
	Outages []Outage      `json:"outages"`
	Quits   []Quit        `json:"quits"`
	Exits   []Exit        `json:"exits"`
	End     *EndState     `json:"end"`
	Finish  Mono          `json:"finish"` // when publishing ended

	WantDeploys, WantKills, WantOutages int
	// Broken and Void are findings of whoever ran the processes: a fault that could
	// not be injected, a process that would not start.
	Broken, Void []string
}

// Limits say how much a run must show, and how much it may take.
type Limits struct {
	InFlight     int           // events that leaving workers must have begun after they were asked to go
	PerWorker    int           // events each generation must have handled
	Accepted     float64       // share of the scheduled events that must have been accepted
	Slack        time.Duration // how long before a fault was seen it may have begun to matter
	MaxDelay     map[Kind]time.Duration
	Redeliveries map[Kind]int // budget per fault
}

// DefaultLimits are those of `tidings drill`.
func DefaultLimits() Limits {
	return Limits{
		InFlight:  5,
		PerWorker: 100,
		Accepted:  0.9,
		Slack:     50 * time.Millisecond,
		// Far above what is usual, far below the broker's default ack wait of 30 s.
		MaxDelay:     map[Kind]time.Duration{Steady: 3 * time.Second, Deploys: 3 * time.Second, Kills: 10 * time.Second, Outages: 15 * time.Second},
		Redeliveries: map[Kind]int{Kills: 500, Outages: 1000},
	}
}

// ms makes durations readable in JSON.
type ms time.Duration

func (d ms) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(time.Duration(d).Microseconds()) / 1000)
}

func (d *ms) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	*d = ms(f * float64(time.Millisecond))
	return nil
}
