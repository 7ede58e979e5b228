package drill

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/synctrace"
)

// Synced is what the trace of the hub's system calls shows: a kill -9 shows nothing of
// what a power cut would take, since the kernel still has it.
type Synced struct {
	Acks     int      `json:"acks"`
	Messages int      `json:"messages"` // that they cover
	Syncs    int      `json:"syncs"`
	Early    []string `json:"early,omitempty"` // acknowledged before they were on the disk
}

// tracer is the program that traces.
const tracer = "strace"

// canTrace says what the scenario sync needs.
func canTrace() error {
	if _, err := exec.LookPath(tracer); err != nil {
		return fmt.Errorf("the scenario sync traces the hub, on Linux with strace (Debian: apt-get install strace): %w", err)
	}
	return nil
}

func (d *drill) traceFile() string { return filepath.Join(d.Dir, "hub.trace") }

// traced is the command that traces the hub.
func (d *drill) traced(hub []string) []string {
	return slices.Concat([]string{tracer}, synctrace.Args(d.traceFile()), hub)
}

// noteTracee has signals go to the hub, and not to who traces it.
func (d *drill) noteTracee() error {
	b, err := os.ReadFile(filepath.Join(d.hubDir(), "lock"))
	if err != nil {
		return err
	}
	d.hubs.target, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return err
}

// synced publishes and handles for a while, stops everything, and reads the trace.
func (d *drill) synced() error {
	if err := d.start(); err != nil {
		return err
	}
	if err := d.enter("traced", Steady, d.For/2, nil); err != nil {
		return err
	}
	if err := d.coolDown(); err != nil {
		return err
	}
	if err := d.hubs.stop(syscall.SIGTERM, patience); err != nil {
		return err
	}
	f, err := os.Open(d.traceFile())
	if err != nil {
		return err
	}
	v, err := synctrace.Check(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	s := &Synced{Acks: len(v.Acks), Messages: v.Messages, Syncs: v.Syncs}
	for _, x := range v.Violations {
		s.Early = append(s.Early, x.String())
	}
	d.ev.Synced = s
	return nil
}

// judgeSynced holds the trace against what publishers were told.
func (j *judge) judgeSynced() {
	s := j.ev.Synced
	if s == nil {
		return
	}
	accepted := 0
	for _, p := range j.sorted {
		if p.state == witness.Accept && j.durable(p.topic) {
			accepted++
		}
	}
	j.synced.Note = fmt.Sprintf("%d acknowledgements of %d messages, %d syncs", s.Acks, s.Messages, s.Syncs)
	if s.Messages < accepted {
		j.synced.void = true
		j.void("the trace has acknowledgements of %d messages, and %d were accepted", s.Messages, accepted)
	}
	for _, text := range s.Early {
		j.broken(j.synced, 0, Violation{Rule: RuleUnsynced, Text: text})
	}
}
