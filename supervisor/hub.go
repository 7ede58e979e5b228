//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/tidings-go/tidings/internal/mutant"
)

// A Hub is a broker that the master keeps on a directory beside its workers. It is a
// child of the master and no worker: it has no part in any restart, upgrade or deploy,
// and outlives the master that has started it, if another has taken that one's place.
// If somebody else runs one on the directory, that one is used and left alone.
type Hub struct {
	// Dir is its directory, an absolute path. The master keeps in it:
	//
	//	hub.log     what the hub writes; it may outlive whoever would read from a pipe
	//	supervised  the pids of the latest hubs that a master has started
	//	masters     locked by each master that uses the hub: the last one stops it
	Dir string
	// Args are those with which this program is the hub.
	Args []string
	// Find returns the hub that runs on Dir, the zero HubFound if none does. It does not
	// block.
	Find func() (HubFound, error)
}

// HubFound is a hub that runs.
type HubFound struct {
	Running bool
	PID     int
	URL     string // for the workers' TIDINGS_URL; empty while it starts
}

// How the hub is watched.
const (
	hubLook      = 250 * time.Millisecond
	hubLookSoon  = 20 * time.Millisecond // while it starts or ends
	hubStop      = 65 * time.Second      // it gives itself a minute
	hubOthers    = 2 * time.Second       // for who runs it to start it again
	hubLogMost   = 8 << 20               // bytes of hub.log, at a start
	urlVar       = "TIDINGS_URL"
	hubLastWords = 512 // bytes
	hubNotes     = 64  // bytes of supervised
)

// A HubStatus is how the hub is.
type HubStatus struct {
	Dir       string    `json:"dir"`
	State     string    `json:"state"` // "starting", "running", "waiting" to be started again, "stopping"
	Since     time.Time `json:"since"` // in state
	PID       int       `json:"pid,omitempty"`
	URL       string    `json:"url,omitempty"`        // without secrets
	Ours      bool      `json:"ours"`                 // a master has started it, and the last one stops it
	Restarts  int       `json:"restarts"`             // deaths that this master has seen
	LastDeath string    `json:"last_death,omitempty"` // of these
}

// A companion is what the master knows of its hub; nil: it has none.
type companion struct {
	*Hub
	users *flock.Flock
	child int // pid of the one that this master has started, until it is reaped
	seen  HubFound
	ours  bool
	url   string // of the latest that was ready

	lookAt, retryAt, upAt, since time.Time
	deaths, restarts             int
	lastDeath                    string
	logFrom                      int64 // where hub.log begins to be of the latest start
	trouble                      string

	ending   bool
	endPID   int       // of one that is another's child
	deadline time.Time // of its end
}

func (h *Hub) check() error {
	switch {
	case h == nil:
		return nil
	case !filepath.IsAbs(h.Dir):
		return fmt.Errorf("supervisor: Hub.Dir is %q: give an absolute path", h.Dir)
	case len(h.Args) == 0 || h.Find == nil:
		return errors.New("supervisor: Hub needs Args and Find")
	}
	return nil
}

// openHub makes this master one of the hub's users.
func (m *master) openHub() (*companion, error) {
	if m.cfg.Hub == nil {
		return nil, nil
	}
	h := &companion{Hub: m.cfg.Hub, since: time.Now()}
	if _, err := os.Stat(h.Dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(h.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("supervisor: Hub.Dir: %w", err)
		}
		if err := m.as.give(h.Dir); err != nil {
			return nil, err
		}
	}
	h.users = flock.New(h.file("masters"), flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW))
	if ok, err := h.users.TryRLock(); err != nil || !ok {
		// Whoever has it alone is a master that stops the hub at this moment.
		if err == nil {
			err = errors.New("another master is stopping the hub: try again")
		}
		return nil, fmt.Errorf("supervisor: Hub.Dir %s: %w", h.Dir, err)
	}
	return h, nil
}

func (h *companion) file(name string) string { return filepath.Join(h.Dir, name) }

// append opens a file to add to it. The directory may be the workers' user's own, and
// the master root: no link of that user's leads it elsewhere.
func (h *companion) append(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(h.file(name), flags|os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", f.Name())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (h *companion) close() {
	if h != nil {
		_ = h.users.Close() // the kernel does as much
	}
}

// ready reports whether workers can be started: the hub was there once. What a worker
// does while it is away is the worker's business.
func (h *companion) ready() bool { return h == nil || h.url != "" }

// advanceHub looks at the hub when that is due, and starts it if there is none.
func (m *master) advanceHub(now time.Time) {
	h := m.hub
	if h == nil || h.ending || now.Before(h.lookAt) {
		return
	}
	h.lookAt = now.Add(hubLookSoon)
	if h.child != 0 && h.restarts == 0 && !h.ready() && now.After(m.askedAt.Add(askEvery)) {
		m.askForTime(m.cfg.ReadyTimeout) // a large store takes long to open
	}
	found, err := h.Find()
	if err != nil {
		if h.trouble != err.Error() {
			h.trouble = err.Error()
			m.log.Error("hub: it cannot be looked for", "dir", h.Dir, "err", err)
		}
		return
	}
	h.trouble = ""
	switch was := h.seen; {
	case found.Running && found.URL != "":
		h.lookAt = now.Add(hubLook)
		if found != was {
			m.hubUp(found, now)
		}
	case found.Running: // it starts, or it ends
		if found.PID != was.PID {
			h.since = now
		}
	case h.child != 0: // it has not begun, or it is not reaped yet
	case was.URL != "":
		m.hubDied(h.goneWords(), now)
	case was == found && h.retryAt.IsZero() && m.parent.alive():
		h.retryAt = now.Add(hubOthers) // the old master keeps it, if it keeps one
	case !now.Before(h.retryAt):
		m.startHub(now)
	default:
		h.lookAt = h.retryAt
	}
	h.seen = found
}

func (h *companion) goneWords() string {
	if h.ours {
		return "it is gone"
	}
	return "it is gone, and whoever runs it has not started it again"
}

func (m *master) hubUp(found HubFound, now time.Time) {
	h := m.hub
	h.ours = found.PID != 0 && (found.PID == h.child || h.supervised(found.PID))
	h.url, h.upAt, h.since = found.URL, now, now
	m.emit(Event{Event: EventHubReady, PID: found.PID})
	m.log.Info("hub ready", "pid", found.PID, "url", found.URL, "ours", h.ours)
}

// supervised reports whether a master has started the hub with that pid.
func (h *companion) supervised(pid int) bool {
	f, err := os.OpenFile(h.file("supervised"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4*hubNotes))
	return err == nil && pid != 0 && slices.Contains(strings.Fields(string(b)), itoa(pid))
}

// supervise notes that a master has. Two masters may start one at once, of which one
// finds the directory in use: so a line is added, and of old ones few are kept.
func (h *companion) supervise(pid int) error {
	flags := 0
	if st, err := os.Lstat(h.file("supervised")); err == nil && st.Size() > hubNotes {
		flags = os.O_TRUNC
	}
	f, err := h.append("supervised", flags)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, pid)
	return errors.Join(err, f.Close())
}

// startHub starts it: in a session of its own, so that neither Ctrl-C nor the end of
// a terminal reaches it, and with nothing of the master's but a log.
func (m *master) startHub(now time.Time) {
	pid, err := m.spawnHub()
	if err != nil {
		m.log.Error("hub was not started", "dir", m.hub.Dir, "err", err)
		m.hubDied(err.Error(), now)
		return
	}
	m.hub.child, m.hub.since = pid, now
	m.emit(Event{Event: EventHubStarted, PID: pid})
	m.log.Info("hub started", "pid", pid, "dir", m.hub.Dir)
}

func (m *master) spawnHub() (pid int, err error) {
	h := m.hub
	if st, err := os.Lstat(h.file("hub.log")); err == nil && st.Size() > hubLogMost {
		if err := os.Rename(h.file("hub.log"), h.file("hub.log.old")); err != nil {
			return 0, err
		}
	}
	out, err := h.append("hub.log", 0)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	if h.logFrom, err = out.Seek(0, 2); err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pid, err = syscall.ForkExec(m.origin.stub, append([]string{m.origin.name}, h.Args...), &syscall.ProcAttr{
		Env:   environ(protocolVars...),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: m.as.credential()},
	})
	if err != nil {
		return 0, fmt.Errorf("execute %s: %w", m.origin.stub, err)
	}
	// Lost with a master that is killed at this instant: then it is somebody else's.
	if err := h.supervise(pid); err != nil {
		m.log.Error("hub: it is not known whose it is, and is left running at the end", "err", err)
	}
	return pid, nil
}

// hubReaped is told of the end of the hub that this master has started.
func (m *master) hubReaped(status unix.WaitStatus, now time.Time) {
	h := m.hub
	e := Event{Event: EventHubExited, PID: h.child}
	words := exitOf(status, &e)
	m.emit(e)
	h.child, h.lookAt = 0, now
	if h.ending {
		m.log.Info("hub gone", "status", words)
		return
	}
	h.seen = HubFound{} // so that it is not found to have died again
	m.hubDied(words+h.lastWords(), now)
}

// hubDied sets when it is started again.
func (m *master) hubDied(why string, now time.Time) {
	h := m.hub
	h.restarts++
	h.lastDeath, h.since = why, now
	first := h.upAt.IsZero()
	if !first && now.Sub(h.upAt) >= m.cfg.BackoffReset {
		h.deaths = 0
	}
	pause := m.backoff(h.deaths + 1)
	switch {
	case !first && (!h.ours || m.parent.alive()):
		pause = max(pause, hubOthers)
	case !first && h.deaths == 0:
		pause = 0
	}
	h.deaths++
	h.retryAt = now.Add(pause)
	m.log.Error("hub died: it is started again", "dir", h.Dir, "reason", why, "in", pause, "deaths_in_a_row", h.deaths)
	if h.url == "" {
		m.giveUp("hub: " + why)
	}
}

// lastWords are the last lines that the hub has written since it was started.
func (h *companion) lastWords() string {
	f, err := os.OpenFile(h.file("hub.log"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(st.Size()-min(h.logFrom, st.Size()), hubLastWords))
	n, _ := f.ReadAt(b, st.Size()-int64(len(b)))
	text := strings.TrimSpace(string(b[:n]))
	if text == "" {
		return ""
	}
	return ", with the last words: " + text
}

// endHub is due when no worker is left. It reports whether the hub needs no more
// waiting for: it has ended, or it is not this master's to end.
func (m *master) endHub(now time.Time) (done bool) {
	h := m.hub
	if h == nil {
		return true
	}
	if !h.ending {
		h.ending, h.deadline = true, now.Add(hubStop)
		if why := m.leaveHub(); why != "" {
			m.log.Info("hub left running", "pid", h.seen.PID, "why", why)
			h.child = 0
			return true
		}
		h.since = now
		if h.child == 0 {
			h.endPID = h.seen.PID
		}
		m.askForTime(hubStop)
		m.signalHub(unix.SIGTERM)
	}
	h.lookAt = now.Add(hubLookSoon)
	found, err := h.Find()
	if err == nil {
		h.seen = found
	}
	switch {
	case !found.Running && err == nil && h.child == 0:
		if h.endPID != 0 { // not a child, of which the exit would have said it
			m.emit(Event{Event: EventHubExited, PID: h.endPID})
			m.log.Info("hub gone", "pid", h.endPID)
		}
		return true
	case !h.deadline.IsZero() && now.After(h.deadline):
		h.deadline = time.Time{}
		m.log.Error("hub killed", "reason", fmt.Sprintf("not gone within %v of TERM", hubStop))
		m.signalHub(unix.SIGKILL)
	}
	return false
}

// leaveHub is why the hub is not this master's to end; empty: it is.
func (m *master) leaveHub() string {
	h := m.hub
	if mutant.On(mutantStopsHub) {
		return ""
	}
	if m.child != 0 || m.parent.alive() {
		return "the other master uses it"
	}
	if alone, err := h.users.TryLock(); err != nil || !alone {
		return "other masters use it"
	}
	if found, err := h.Find(); err == nil {
		h.seen = found
	}
	if h.child == 0 && (!h.seen.Running || !h.supervised(h.seen.PID)) {
		return "it was not started by a master"
	}
	return ""
}

// signalHub signals the hub, whoever's child it is. The process is held before it is
// looked whether it still is the hub, so that no other is meant.
func (m *master) signalHub(sig syscall.Signal) {
	pid := m.hub.child
	if pid == 0 {
		pid = m.hub.seen.PID
	}
	if pid == 0 {
		return
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		defer func() { _ = p.Release() }()
		var found HubFound
		switch found, err = m.hub.Find(); {
		case err != nil:
		case pid == m.hub.child, found.PID == pid && m.as.owns(pid):
			err = p.Signal(sig)
		case found.PID == pid:
			err = errors.New("it does not run as the workers' user")
		}
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.log.Warn("hub was not signalled", "pid", pid, "signal", sig, "err", err)
	}
}

// withHub adds to a worker's environment where the hub is, unless it says where the
// broker is.
func (m *master) withHub(env []string) []string {
	if m.hub == nil || m.hub.url == "" {
		return env
	}
	said := func(v string) bool { return strings.HasPrefix(v, urlVar+"=") }
	if i := slices.IndexFunc(env, said); i >= 0 && env[i] != urlVar+"=" {
		return env
	}
	return append(slices.DeleteFunc(env, said), urlVar+"="+m.hub.url)
}

func (h *companion) status() *HubStatus {
	if h == nil {
		return nil
	}
	s := &HubStatus{Dir: h.Dir, State: "waiting", Since: h.since, PID: h.seen.PID, URL: h.url, Ours: h.ours, Restarts: h.restarts, LastDeath: h.lastDeath}
	switch {
	case h.ending:
		s.State = "stopping"
	case h.seen.Running && h.seen.URL != "":
		s.State = "running"
	case h.child != 0 || h.seen.Running:
		s.State = "starting"
		if s.PID == 0 {
			s.PID = h.child
		}
	}
	return s
}

// says is for people, when the workers wait for it.
func (h *companion) says() string {
	switch {
	case h.ready():
		return ""
	case h.lastDeath != "":
		return "; the hub has died" + inARow(h.deaths) + ": " + firstOf(h.lastDeath)
	case h.trouble != "":
		return "; the hub: " + h.trouble
	}
	return "; the hub is starting"
}

// firstOf is text on one line.
func firstOf(text string) string { return strings.ReplaceAll(text, "\n", " | ") }
