package drill

import (
	"encoding/json"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/sdnotify"
	"github.com/tidings-go/tidings/supervisor"
)

// Mono is a time on CLOCK_MONOTONIC, as journals have it. Zero means never.
type Mono = time.Duration

// Kind is what happened in a phase of a run.
type Kind string

// The kinds of phases, each with promises of its own.
const (
	Steady   Kind = "steady"
	Slows    Kind = "slow handler"
	Deploys  Kind = "deploy"
	Kills    Kind = "kill -9"
	Outages  Kind = "hub restart"
	Networks Kind = "network fault"
	Nodes    Kind = "node killed"
	Absences Kind = "hub away"
	Crashes  Kind = "deadly event"
	Cuts     Kind = "cut drain"
	Masters  Kind = "kill -9 of the master"
	Takeover Kind = "hub moved"
	Deaths   Kind = "kill -9 of a publisher"
	Fulls    Kind = "full spool"
	Signals  Kind = "signal"        // its promises are those of one cell, which has the phase's name
	Between  Kind = "between cells" // masters of the matrix come and go
)

// A Phase lasts until the next one starts.
type Phase struct {
	Name  string `json:"name"`
	Kind  Kind   `json:"kind"`
	Start Mono   `json:"start"`
}

// row is what the phase's row in the table is called.
func (p Phase) row() Kind {
	if p.Kind == Signals {
		return Kind(p.Name)
	}
	return p.Kind
}

// kinds in the order of the table.
var kinds = []Kind{Steady, Slows, Deploys, Kills, Deaths, Outages, Takeover, Networks, Nodes, Absences, Fulls, Crashes, Cuts, Masters, Between}

// An Expectation is a subscription that must get every event of a topic once.
type Expectation struct {
	Topic   string `json:"topic"`
	Pattern string `json:"pattern"`
	Group   string `json:"group"`
	Durable bool   `json:"durable"`
	Keyed   bool   `json:"keyed,omitempty"`    // order is per key, not per publisher
	GivesUp bool   `json:"gives_up,omitempty"` // what is planted to die becomes its dead letter
}

// A Deploy is one replacement of all workers.
type Deploy struct {
	Name     string   `json:"name"`
	Signal   string   `json:"signal"` // "HUP" or "USR2 and QUIT"
	Start    Mono     `json:"start"`
	NewReady Mono     `json:"new_ready"` // when the last new worker was ready
	OldGone  Mono     `json:"old_gone"`  // when the last old process had exited
	Old      []int    `json:"old"`       // pids of old workers, and of the old master after USR2
	New      []int    `json:"new"`       // pids of new workers
	Failure  string   `json:"failure,omitempty"`
	Cut      bool     `json:"cut,omitempty"` // handlers took longer than the drain waited
	Hub      *HubRuns `json:"hub,omitempty"` // of a master that keeps one
}

// HubRuns are the hub before a deploy that must not touch it, and after that.
type HubRuns struct {
	Before HubRun `json:"before"`
	After  HubRun `json:"after"`
}

// A HubRun is the hub between one start and the next.
type HubRun struct {
	PID    int    `json:"pid"`
	Server string `json:"server"` // the name that nats-server draws at each start
}

// A Release is one run of tidings deploy.
type Release struct {
	Name    string              `json:"name"`
	Start   Mono                `json:"start"` // just before it was started
	Begun   Mono                `json:"begun"` // when the master had begun the deploy
	Gone    Mono                `json:"gone"`  // when the last worker that had to go was
	End     Mono                `json:"end"`   // when the command had ended
	Want    int                 `json:"want"`  // its exit status must be
	Exit    int                 `json:"exit"`
	Old     []int               `json:"old"`               // pids of the workers that served when it was started
	New     []int               `json:"new"`               // of those that the deploy has started
	Refuses string              `json:"refuses,omitempty"` // the group whose handlers fail in all of them
	Receipt *supervisor.Receipt `json:"receipt,omitempty"` // as the command has printed it
}

// A Start is what one worker was started as, by what its program wrote down itself.
type Start struct {
	PID  int    `json:"pid"`
	Is   string `json:"is"`
	Want string `json:"want"`
}

// A Told is the last report of a worker that told its master what it did in all.
type Told struct {
	PID    int             `json:"pid"`
	Report sdnotify.Report `json:"report"`
}

// A Cell is one signal that was sent to somebody in some state, and what came of
// it.
type Cell struct {
	Name    string   `json:"name"` // as its phase's, if it has one
	State   string   `json:"state"`
	Signal  string   `json:"signal"`
	To      string   `json:"to"`
	Effect  string   `json:"effect,omitempty"`
	Wrong   []string `json:"wrong,omitempty"`       // how it differs from what the table of signals promises
	Missed  string   `json:"missed,omitempty"`      // why it proves nothing
	Nothing string   `json:"meaningless,omitempty"` // why it was not played
	Start   Mono     `json:"start,omitempty"`
	End     Mono     `json:"end,omitempty"`
	Workers []int    `json:"workers,omitempty"` // that were ready when the signal was sent
}

// A Kill is one kill -9 of a worker, or the end of one that an event has killed.
type Kill struct {
	PID     int  `json:"pid"`
	Sent    Mono `json:"sent"`
	Noticed Mono `json:"noticed"` // when its master had reaped it
	InHand  int  `json:"in_hand"` // events it had begun and not ended
}

// A Death is one kill -9 of a publisher.
type Death struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Sent    Mono   `json:"sent"` // or when it was stopped, if it was before
	Noticed Mono   `json:"noticed"`
	Open    int    `json:"open"`             // events that it had heard nothing of
	Stored  uint64 `json:"stored,omitempty"` // events that the hub has stored, and the publisher has not heard of it
	Left    uint64 `json:"left"`             // events in spools of dead publishers then
}

// SpoolsEnd is what lay in the publishers' spools when all had ended.
type SpoolsEnd struct {
	Left     uint64 `json:"left"`     // events
	Refused  int    `json:"refused"`  // that no stream took
	Damaged  int    `json:"damaged"`  // parts that were set aside
	Possible int    `json:"possible"` // events of which publishers have said that they may be stored twice
}

// A Span is a time in which no worker was ready.
type Span struct {
	From Mono `json:"from"`
	To   Mono `json:"to"`
}

// A Letter is one dead letter, as the broker has it.
type Letter struct {
	Topic      string `json:"topic"`
	ID         string `json:"id"`
	Pattern    string `json:"pattern"`
	Group      string `json:"group"`
	Reason     string `json:"reason"`
	Attempts   int    `json:"attempts"`
	Deliveries int    `json:"deliveries"`
}

// A Redrive gives the events of all dead letters to their groups again, after
// what killed them was mended.
type Redrive struct {
	At   Mono     `json:"at"`   // just before
	Done int      `json:"done"` // events that were given again
	Left []Letter `json:"left"` // dead letters once everything was handled
}

// An Outage is one stop and restart of the hub, a time in which the network did not lead
// to it, or one in which a node of a cluster was missing.
type Outage struct {
	Network string      `json:"network,omitempty"` // what it did; "": it is the hub's
	Node    string      `json:"node,omitempty"`    // of a cluster; Up: the others answer
	Host    string      `json:"host,omitempty"`    // who ran the hub, where that may be one of several; only the others are clients then
	Next    string      `json:"next,omitempty"`    // who runs it afterwards
	PID     int         `json:"pid"`
	Killed  bool        `json:"killed,omitempty"`  // with -9: it has closed nothing
	Down    Mono        `json:"down"`              // just before the signal to stop was sent
	Gone    Mono        `json:"gone"`              // when its process had exited
	Up      Mono        `json:"up"`                // when it answered again
	Elected Mono        `json:"elected,omitempty"` // of a node, when the stream and its groups had leaders again; 0: they had lost none
	Back    Mono        `json:"back"`              // when every client was seen connected again
	Before  int         `json:"before"`            // client connections before
	Closed  int         `json:"closed"`            // client connections the hub said it closed, or the network ended
	After   int         `json:"after"`             // client connections once all were back
	Old     StreamState `json:"old"`
	New     StreamState `json:"new"`
}

// kind is that of the phase it makes.
func (o Outage) kind() Kind {
	switch {
	case o.Network != "":
		return Networks
	case o.Node != "":
		return Nodes
	case o.Host != "" && o.Next != keptHost:
		return Takeover
	}
	return Outages
}

// what is how it is called.
func (o Outage) what() string {
	switch {
	case o.Network != "":
		return "network fault (" + o.Network + ")"
	case o.Node != "":
		return "kill -9 of " + o.Node
	case o.Host != "":
		return "end of the hub (" + o.Host + ")"
	}
	return "restart of the hub"
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
	AckWait    ms     `json:"ack_wait_ms"` // the longest of all consumers
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

	Crashes  []Kill     `json:"crashes,omitempty"`
	Seed     uint64     `json:"seed,omitempty"` // of the random instants
	Deaths   []Death    `json:"deaths,omitempty"`
	Leavers  []Quit     `json:"leavers,omitempty"` // publishers that had to end before the others
	Spools   *SpoolsEnd `json:"spools,omitempty"`
	Synced   *Synced    `json:"synced,omitempty"`
	Away     []Span     `json:"away,omitempty"`
	Cells    []*Cell    `json:"cells,omitempty"`
	CutOff   []Kill     `json:"cut_off,omitempty"` // workers that a cell's signal has ended with events in their hands, as it may
	Letters  []Letter   `json:"letters"`           // before the redrive
	Reports  []Told     `json:"reports,omitempty"`
	Releases []Release  `json:"releases,omitempty"`
	Starts   []Start    `json:"starts,omitempty"`
	Redrive  *Redrive   `json:"redrive,omitempty"`

	WantDeploys, WantKills, WantOutages int
	WantReleases, WantDeaths            int
	WantFates                           []witness.Fate // each must have been met
	// Broken and Void are findings of whoever ran the processes: a fault that could
	// not be injected, a process that would not start.
	Broken, Void []string
}

// Limits say how much a run must show, and how much it may take.
type Limits struct {
	InFlight     int           // events that leaving workers must have begun after they were asked to go
	PerWorker    int           // events each generation must have handled
	Accepted     float64       // share of the scheduled events that must have been accepted
	Begins       int           // times that an event may begin to kill its process, before it is given up
	Slack        time.Duration // how long before a fault was seen it may have begun to matter
	MaxDelay     map[Kind]time.Duration
	Redeliveries map[Kind]int  // budget per fault
	PerCell      int           // events that must have met a cell
	Unsaved      time.Duration // how long before a kill -9 of the hub an acknowledgement may be that it has forgotten
	Unflushed    time.Duration // how long before a kill -9 of its publisher a live event may be that went with it, or a durable one that nobody has answered
	Spooled      int           // events that must have been accepted while there was no hub
	Refused      int           // events that must have been refused by full spools
	Silence      time.Duration // for which nothing may be accepted when the hub has ended
	CutOff       int           // live events that one process that was cut off may take along
}

// DefaultLimits are those of `tidings drill`.
func DefaultLimits() Limits {
	return Limits{
		InFlight:  5,
		PerWorker: 100,
		Accepted:  0.9,
		Begins:    20, // its deliveries count from one again when a consumer is reset
		Slack:     50 * time.Millisecond,
		// Far above what is usual, far below the broker's default ack wait of 30 s.
		MaxDelay: map[Kind]time.Duration{Steady: 3 * time.Second, Deploys: 3 * time.Second, Kills: 10 * time.Second, Outages: 15 * time.Second, Networks: 15 * time.Second, Nodes: 20 * time.Second,
			Slows: 30 * time.Second, Crashes: 25 * time.Second, Cuts: 30 * time.Second, Signals: 3 * time.Second, Between: 3 * time.Second,
			Masters: 15 * time.Second, Takeover: 15 * time.Second, Deaths: 10 * time.Second, Absences: 15 * time.Second, Fulls: 15 * time.Second},
		Redeliveries: map[Kind]int{Kills: 500, Outages: 1000, Takeover: 1000, Networks: 1000, Nodes: 1000, Crashes: 500, Cuts: 500, Signals: 500},
		PerCell:      10,
		Unsaved:      time.Second, // ten times what was measured
		Unflushed:    500 * time.Millisecond,
		Spooled:      50,
		Refused:      20,
		CutOff:       500,
		Silence:      5 * time.Second, // ten times what was measured on a busy machine
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
