package witness

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// EnvDir names the variable that holds the drill's folder.
const EnvDir = "TIDINGS_DRILL_DIR"

// Kind is the letter that says what a line of the journal records.
type Kind byte

// The kinds of lines, with their fields.
const (
	Header Kind = 'H' // role, pid, app, generation, slot
	Plan   Kind = 'P' // topic, id, key, fate
	Intent Kind = 'I' // topic, id, scheduled
	Accept Kind = 'A' // topic, id
	Refuse Kind = 'R' // topic, id, error
	Doubt  Kind = 'D' // topic, id, error
	Begin  Kind = 'B' // topic, id, pattern, group, attempt
	End    Kind = 'E' // topic, id, pattern, group, error
	Ack    Kind = 'K' // topic, id, pattern, group
	Nack   Kind = 'N' // topic, id, pattern, group, error
	Left   Kind = 'L' // topic, id, LeftBack or LeftUnsure
	Closed Kind = 'X' // number of lines, this one included
)

// What a drain's receipt says of an event.
const (
	LeftBack   = "handed back"
	LeftUnsure = "unconfirmed"
)

// Witness is the journal of one process.
type Witness struct {
	dir   string // of the drill
	mu    sync.Mutex
	f     *os.File
	n     uint64
	line  []byte
	ended bool
}

// fail ends the process; tests replace it.
var fail = func(err error) {
	fmt.Fprintln(os.Stderr, "witness: the journal of this drill cannot be kept, so the process ends:", err)
	os.Exit(70)
}

// Now is the time on the clock that journals use.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		fail(fmt.Errorf("no monotonic clock: %w", err))
	}
	return time.Duration(ts.Nano())
}

// FromEnv opens a journal in the folder that TIDINGS_DRILL_DIR names, for a
// process in the given role ("publisher", "subscriber") of an app. It returns nil
// outside a drill. Generation and worker slot come from the supervisor's
// TIDINGS_GENERATION and TIDINGS_WORKER.
func FromEnv(role, app string) *Witness {
	dir := os.Getenv(EnvDir)
	if dir == "" {
		return nil
	}
	w, err := Open(dir, role, app)
	if err != nil {
		fail(err)
	}
	return w
}

// Open opens a journal in dir; see [FromEnv].
func Open(dir, role, app string) (*Witness, error) {
	ledger := filepath.Join(dir, "ledger")
	if err := os.MkdirAll(ledger, 0o700); err != nil {
		return nil, err
	}
	var r [4]byte
	_, _ = rand.Read(r[:]) // never fails
	name := fmt.Sprintf("%s-%d-%s.log", role, os.Getpid(), hex.EncodeToString(r[:]))
	f, err := os.OpenFile(filepath.Join(ledger, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	w := &Witness{dir: dir, f: f}
	w.write(Header, role, strconv.Itoa(os.Getpid()), app, os.Getenv("TIDINGS_GENERATION"), os.Getenv("TIDINGS_WORKER"))
	return w, nil
}

// ID makes the id of a publisher's n-th event on a topic. The drill reads the
// publisher and the number back out of it, to judge order.
func ID(publisher string, n int) string { return publisher + ":" + strconv.Itoa(n) }

// SplitID is the inverse of [ID].
func SplitID(id string) (publisher string, n int, ok bool) {
	i := strings.LastIndexByte(id, ':')
	if i <= 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(id[i+1:])
	return id[:i], n, err == nil
}

// Plan records what is peculiar about an event that is about to be published: the
// key that it keeps its order by, and what is planted in it.
func (w *Witness) Plan(topic, id, key string, f Fate) { w.write(Plan, topic, id, key, string(f)) }

// Intent records that an event is about to be published, before it is. scheduled
// is when the open-loop schedule wanted it, on the clock of [Now].
func (w *Witness) Intent(topic, id string, scheduled time.Duration) {
	w.write(Intent, topic, id, strconv.FormatInt(int64(scheduled), 10))
}

// Accept records that Publish has returned nil.
func (w *Witness) Accept(topic, id string) { w.write(Accept, topic, id) }

// Refuse records that Publish has failed and promised that nothing was taken.
func (w *Witness) Refuse(topic, id string, err error) { w.write(Refuse, topic, id, text(err)) }

// Doubt records that Publish has failed and the event may have been taken.
func (w *Witness) Doubt(topic, id string, err error) { w.write(Doubt, topic, id, text(err)) }

// Begin records that a handler of (group, pattern) was called, before it works.
func (w *Witness) Begin(topic, id, pattern, group string, attempt int) {
	w.write(Begin, topic, id, pattern, group, strconv.Itoa(attempt))
}

// End records that the handler has returned err.
func (w *Witness) End(topic, id, pattern, group string, err error) {
	w.write(End, topic, id, pattern, group, text(err))
}

// Ack records what became of the handler's acknowledgement: err is nil when the
// broker has confirmed it.
func (w *Witness) Ack(topic, id, pattern, group string, err error) {
	if err != nil {
		w.write(Nack, topic, id, pattern, group, text(err))
		return
	}
	w.write(Ack, topic, id, pattern, group)
}

// Left records that the receipt of a drain names an event, as what.
func (w *Witness) Left(topic, id, what string) { w.write(Left, topic, id, what) }

// Close writes the last line. What is recorded afterwards is a fault of the
// application and ends it.
func (w *Witness) Close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	w.put(Closed, strconv.FormatUint(w.n+1, 10))
	w.ended = true
	if err := w.f.Close(); err != nil {
		fail(err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (w *Witness) write(k Kind, fields ...string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(k, fields...)
}

// put writes one line. The number is taken, and the clock read, under the lock:
// within a journal both only rise.
func (w *Witness) put(k Kind, fields ...string) {
	if w.ended {
		fail(fmt.Errorf("%s: %q %q was recorded after Close", w.f.Name(), string(k), fields))
		return
	}
	w.n++
	b := strconv.AppendUint(w.line[:0], w.n, 10)
	b = append(b, '\t')
	b = strconv.AppendInt(b, int64(Now()), 10)
	b = append(b, '\t', byte(k))
	for _, s := range fields {
		b = append(b, '\t')
		b = appendField(b, s)
	}
	b = append(b, '\n')
	w.line = b
	if _, err := w.f.Write(b); err != nil {
		fail(err)
	}
}

func appendField(b []byte, s string) []byte {
	if s == "" || strings.ContainsAny(s, "\t\n\r\"") {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

// Line is one line of a journal, read back.
type Line struct {
	N      uint64
	At     time.Duration
	Kind   Kind
	Fields []string
}

// Parse reads one line without its line end.
func Parse(s string) (Line, error) {
	parts := strings.Split(s, "\t")
	if len(parts) < 3 || len(parts[2]) != 1 {
		return Line{}, fmt.Errorf("not a line of a journal: %q", s)
	}
	n, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return Line{}, fmt.Errorf("line number: %w", err)
	}
	at, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return Line{}, fmt.Errorf("time: %w", err)
	}
	l := Line{N: n, At: time.Duration(at), Kind: Kind(parts[2][0]), Fields: parts[3:]}
	want, known := widths[l.Kind]
	if !known || len(l.Fields) != want {
		return l, fmt.Errorf("kind %q with %d fields: %q", parts[2], len(l.Fields), s)
	}
	for i, f := range l.Fields {
		if strings.HasPrefix(f, `"`) {
			if l.Fields[i], err = strconv.Unquote(f); err != nil {
				return l, fmt.Errorf("field %d of %q: %w", i+1, s, err)
			}
		}
	}
	return l, nil
}

var widths = map[Kind]int{Header: 5, Plan: 4, Intent: 3, Accept: 2, Refuse: 3, Doubt: 3, Begin: 5, End: 5, Ack: 4, Nack: 5, Left: 3, Closed: 1}
