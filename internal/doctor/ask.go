package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// userInfo is what the server says of who we are there.
type userInfo struct {
	Account     string `json:"account"`
	Permissions *struct {
		Publish   subjects `json:"publish"`
		Subscribe subjects `json:"subscribe"`
	} `json:"permissions"` // nil: everything
}

// subjects that are allowed, all if none are named, but for those that are denied.
type subjects struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

// askUser has the server tell. It is nil where that may not be asked, or not answered.
func (e *exam) askUser(ctx context.Context) {
	if u, _, err := e.userInfo(ctx); err == nil {
		e.user = u
	}
}

func (e *exam) userInfo(ctx context.Context) (*userInfo, time.Time, error) {
	m, err := e.ask(ctx, "$SYS.REQ.USER.INFO", nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	var got struct {
		Server struct {
			Time time.Time `json:"time"`
		} `json:"server"`
		Data *userInfo `json:"data"`
	}
	if err := json.Unmarshal(m.Data, &got); err != nil {
		return nil, time.Time{}, err
	}
	return got.Data, got.Server.Time, nil
}

// varz is what nats-server's monitoring says of itself.
type varz struct {
	ID             string    `json:"server_id"`
	Now            time.Time `json:"now"`
	Connections    int       `json:"connections"`
	MaxConnections int       `json:"max_connections"`
	JetStream      struct {
		Config *struct {
			SyncAlways   bool          `json:"sync_always"`
			SyncInterval time.Duration `json:"sync_interval"`
			MaxStore     int64         `json:"max_storage"`
			MaxMemory    int64         `json:"max_memory"`
		} `json:"config"`
	} `json:"jetstream"`
}

const (
	monitorPort    = "8222"
	monitorLimit   = 8 << 20
	monitorWaiting = time.Second
)

// askMonitor looks for the monitoring of the server that we are connected to.
func (e *exam) askMonitor(ctx context.Context) {
	roots := []string{e.o.Monitor}
	if e.o.Monitor == "" {
		roots = nil
		for _, s := range e.target.Servers() {
			if u, err := url.Parse(s); err == nil {
				roots = append(roots, "http://"+net.JoinHostPort(u.Hostname(), monitorPort))
			}
		}
	}
	var other string
	for _, root := range slices.Compact(roots) {
		v, err := getVarz(ctx, root)
		switch {
		case err == nil && v.ID == e.nc.ConnectedServerId():
			e.varz, e.monitor = v, root
			return
		case err == nil:
			other = fmt.Sprintf("%s is of another server", root)
		default:
			other = err.Error()
		}
	}
	if e.o.Monitor != "" {
		e.fail("monitoring", "correct --monitor, or leave it out", "%s", other)
	}
}

func getVarz(ctx context.Context, root string) (*varz, error) {
	ctx, cancel := context.WithTimeout(ctx, monitorWaiting)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(root, "/")+"/varz", nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s/varz: %s", root, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, monitorLimit))
	if err != nil {
		return nil, err
	}
	v := new(varz)
	if err := json.Unmarshal(b, v); err != nil || v.ID == "" {
		return nil, fmt.Errorf("%s/varz is not that of a nats-server", root)
	}
	return v, nil
}

// Differences of clocks: what is late or early by that much.
const (
	clockWarn = time.Second
	clockFail = time.Minute
)

// clock compares the clocks: of a few questions, the one that was answered soonest says
// it best, as somewhere between its two ends the server looked at its clock.
func (e *exam) clock(ctx context.Context) {
	var off time.Duration
	best := time.Duration(-1)
	for range 5 {
		sent := time.Now()
		_, at, err := e.userInfo(ctx)
		rtt := time.Since(sent)
		if err != nil || at.IsZero() {
			break
		}
		if best < 0 || rtt < best {
			best, off = rtt, at.Sub(sent.Add(rtt/2))
		}
	}
	if best < 0 && e.varz != nil {
		sent := time.Now()
		if v, err := getVarz(ctx, e.monitor); err == nil {
			best = time.Since(sent)
			off = v.Now.Sub(sent.Add(best / 2))
		}
	}
	if best < 0 {
		e.skip("clock", "the server tells this user no time: allow $SYS.REQ.USER.INFO, or open its monitoring")
		return
	}
	v, do, found := judgeClock(off, best/2)
	e.add(v, "clock", do, "%s", found)
}

// judgeClock says what becomes of a difference that is known to within so much.
func judgeClock(off, within time.Duration) (v Verdict, do, found string) {
	side := "ahead"
	if off < 0 {
		side = "behind"
	}
	found = fmt.Sprintf("the server's is %v %s, known to %v", short(off.Abs()), side, short(within))
	switch least := off.Abs() - within; {
	case least > clockFail:
		v = Fail
	case least > clockWarn:
		v = Warn
	default:
		return OK, "", found
	}
	return v, "set both by NTP: delayed events are due, and events expire, by these clocks", found
}
