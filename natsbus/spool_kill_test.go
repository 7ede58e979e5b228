package natsbus_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// spoolerEnv makes this binary a process that spools events and says which were
// accepted, until it comes to the point where it is killed.
const (
	spoolerEnv = "TIDINGS_TEST_SPOOLER"
	spoolDir   = "TIDINGS_TEST_SPOOL_DIR"
	spoolLife  = "TIDINGS_TEST_SPOOL_LIFE"
	spoolPoint = "TIDINGS_TEST_SPOOL_POINT"
	spoolAhead = "TIDINGS_TEST_SPOOL_AHEAD" // how far its clock is
)

const perLife = 60

func spooler(url string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	point, nth, _ := strings.Cut(os.Getenv(spoolPoint), ":")
	n, _ := strconv.Atoi(nth)
	var left atomic.Int64
	left.Store(int64(n))
	natsbus.StopAt(func(p string) {
		if p != point {
			return
		}
		if left.Add(-1) <= 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	life, err := strconv.Atoi(os.Getenv(spoolLife))
	fail(err)
	if ahead := os.Getenv(spoolAhead); ahead != "" {
		d, err := time.ParseDuration(ahead)
		fail(err)
		natsbus.SetSpoolClock(func() time.Time { return time.Now().Add(d) })
	}
	ctx := context.Background()
	a, err := natsbus.Open(ctx, url, spooling(os.Getenv(spoolDir)))
	fail(err)
	for i := range perLife {
		class := adapter.Durable
		if i > perLife/4 {
			class = adapter.Spooled
		}
		id := strconv.Itoa(life*perLife + i)
		fmt.Println("intends", id)
		fail(a.Publish(ctx, order(id, 10), class))
		fmt.Println("accepted", id)
	}
	fail(a.Drain(ctx))
	fmt.Println("drained")
}

// Processes that are killed at each step of the hand-off, one after the other on one
// spool directory, lose nothing that was accepted, double nothing, and keep the order;
// also when the broker is away for longer than it remembers ids.
func TestKilledWhileHandingOff(t *testing.T) {
	points := []string{"noted", "sent:20", "acknowledged:4", "progress noted", "sent:30", "adopted", "trimmed:3", "trimmed", "sent:2", ""}
	for _, outage := range []bool{false, true} {
		t.Run(fmt.Sprint(outage), func(t *testing.T) {
			t.Parallel()
			srv, dir := testkit.Server(t), t.TempDir()
			var intended, accepted []string
			for life, point := range points {
				p := testkit.Spawn(t, spoolerEnv+"="+srv.URL()+"?duplicates="+window.String(), spoolDir+"="+dir,
					spoolLife+"="+strconv.Itoa(life), spoolPoint+"="+point)
				drained := false
				for line := range p.Lines() {
					switch what, id, _ := strings.Cut(line, " "); what {
					case "intends":
						intended = append(intended, id)
					case "accepted":
						accepted = append(accepted, id)
					case "drained":
						drained = true
					default:
						t.Fatalf("life %d: %s", life, line)
					}
				}
				if drained != (point == "") {
					t.Errorf("life %d came to its end: %v", life, drained)
				}
				if outage {
					srv.Restart()
					forget(t)
				}
			}
			ids, _ := storedIDs(t, srv.URL(), "shop")
			checkLedger(t, intended, accepted, ids)
		})
	}
}

// forget waits until a stream has forgotten the ids of before.
func forget(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(2 * window):
	case <-t.Context().Done():
	}
}

func checkLedger(t *testing.T, intended, accepted, ids []string) {
	t.Helper()
	place := map[string]int{}
	for i, id := range ids {
		if _, twice := place[id]; twice {
			t.Errorf("%s is stored twice", id)
		}
		place[id] = i
	}
	last := -1
	for _, id := range accepted {
		at, ok := place[id]
		if !ok {
			t.Errorf("%s was accepted, and is not stored", id)
		} else if at < last {
			t.Errorf("%s is stored before what was accepted before it", id)
		}
		last = max(last, at)
	}
	if more := len(ids) - len(accepted); more < 0 || len(accepted) < 2*perLife || len(ids) > len(intended) {
		t.Errorf("%d intended, %d accepted, %d stored", len(intended), len(accepted), len(ids))
	}
}
