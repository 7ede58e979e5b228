package natsbus_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// replayEnv makes this binary a process that replays to the group, and says how
// far it is; resumeEnv has it resume.
const (
	replayEnv = "TIDINGS_TEST_REPLAY"
	resumeEnv = "TIDINGS_TEST_RESUME"
)

var toGroup = adapter.Replay{Group: "g", Pattern: "order.*"}

func replayingMember(url string) {
	ctx := context.Background()
	a, err := natsbus.Open(ctx, url, adapter.Config{App: "replay"})
	if err == nil {
		q := toGroup
		q.Resume = os.Getenv(resumeEnv) != ""
		q.Progress = func(now adapter.Replayed) { fmt.Println(now.Given) }
		_, err = a.(adapter.Replayer).Replay(ctx, q)
	}
	fmt.Println("ended", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// settling subscribes the group, and returns what it has acknowledged.
func settling(t *testing.T, a adapter.Adapter) <-chan string {
	t.Helper()
	acked := make(chan string, 10_000)
	subscribe(t, a, groupSpec(func(d adapter.Delivery) {
		id := d.ID
		d.Settle.Ack(func(err error) {
			if err == nil {
				acked <- id
			}
		})
	}))
	return acked
}

func take(t *testing.T, ch <-chan string, n int) (got []string) {
	t.Helper()
	ctx := within(t)
	for range n {
		select {
		case id := <-ch:
			got = append(got, id)
		case <-ctx.Done():
			t.Fatalf("%d of %d arrived", len(got), n)
		}
	}
	return got
}

func idsOf(from, to int) (all []string) {
	for i := from; i <= to; i++ {
		all = append(all, strconv.Itoa(i))
	}
	return all
}

func run(t *testing.T, a adapter.Adapter, q adapter.Replay) adapter.Replayed {
	t.Helper()
	done, err := a.(adapter.Replayer).Replay(within(t), q)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// Killed again and again, and resumed: none is missing, none is doubled, and the
// stream does not keep the copies that were handled.
func TestReplayOutlivesKills(t *testing.T) {
	srv := testkit.Server(t)
	const n = 4000
	p := stored(t, srv.URL(), n)
	acked := settling(t, p)
	take(t, acked, n)
	for i := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), replayEnv+"="+srv.URL())
		if i > 0 {
			cmd.Env = append(cmd.Env, resumeEnv+"=1")
		}
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 3 {
			if !lines.Scan() || strings.HasPrefix(lines.Text(), "ended") {
				t.Errorf("run %d: %q", i, lines.Text())
			}
		}
		_ = cmd.Process.Kill() // while it gives the next
		_ = in.Close()
		_ = cmd.Wait()
	}
	q := toGroup
	q.Resume = true
	done := run(t, p, q)
	if done.Given == 0 || done.Given >= n-500 {
		t.Errorf("the last run gave %d", done.Given)
	}
	publish(t, p, adapter.Durable, "last", "order.placed")
	if got := take(t, acked, n+1); !slices.Equal(got, append(idsOf(1, n), "last")) {
		for i, id := range got {
			if id != strconv.Itoa(i+1) {
				t.Fatalf("place %d has %s", i+1, id)
			}
		}
	}
	if kept := streamInfo(t, jsClient(t, srv.URL()), "shop").State.Msgs - n - 1; kept > 2500 {
		t.Errorf("%d copies are left in the stream", kept)
	}
}

// A stream that another group keeps nearly full has room for few copies at a time;
// publishers have theirs, and when there is none the error says the way out.
func TestReplayLeavesRoomForPublishers(t *testing.T) {
	srv := testkit.Server(t)
	p := open(t, srv.URL()+"?max-msgs=1000", adapter.Config{Durable: []string{"order.>"}})
	other := groupSpec(func(adapter.Delivery) {})
	other.Group = "away"
	if err := subscribe(t, p, other).Close(within(t)); err != nil {
		t.Fatal(err)
	}
	acked := settling(t, p)
	for _, id := range idsOf(1, 880) {
		publish(t, p, adapter.Durable, id, "order.placed")
	}
	take(t, acked, 880)
	js := jsClient(t, srv.URL())
	most := uint64(0)
	q := toGroup
	q.Progress = func(adapter.Replayed) { most = max(most, streamInfo(t, js, "shop").State.Msgs) }
	if done := run(t, p, q); done.Given != 880 || most > 900 {
		t.Errorf("it gave %d, and the stream held %d", done.Given, most)
	}
	if got := take(t, acked, 880); !slices.Equal(got, idsOf(1, 880)) {
		t.Error("not the same, or not in order")
	}
	have := int(streamInfo(t, js, "shop").State.Msgs)
	for _, id := range idsOf(have+1, 950) {
		publish(t, p, adapter.Durable, "more"+id, "order.placed")
	}
	take(t, acked, 950-have)
	done, err := p.(adapter.Replayer).Replay(within(t), toGroup)
	if !errors.Is(err, adapter.ErrFull) || done.Given != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, part := range []string{"shop", "95% full (max_msgs 1000)", "tidings streams", "nats stream edit shop"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %s: %v", part, err)
		}
	}
	publish(t, p, adapter.Durable, "still", "order.placed")
}

// What is purged before it could be given is counted; a broker that is restarted
// meanwhile costs nothing.
func TestReplayOverAPurgeAndARestart(t *testing.T) {
	srv := testkit.Server(t)
	const n = 1500
	p := stored(t, srv.URL(), n)
	acked := settling(t, p)
	take(t, acked, n)
	restarted := false
	q := toGroup
	q.Progress = func(now adapter.Replayed) {
		if now.Given > 0 && !restarted {
			restarted = true
			srv.Restart()
		}
	}
	if done := run(t, p, q); done.Given != n || done.Gone != 0 {
		t.Errorf("over a restart: %+v", done)
	}
	got := take(t, acked, n)
	slices.SortFunc(got, func(a, b string) int { x, _ := strconv.Atoi(a); y, _ := strconv.Atoi(b); return x - y })
	if !slices.Equal(got, idsOf(1, n)) { // a restart may deliver out of order what was taken
		t.Error("not the same")
	}
	js := jsClient(t, srv.URL())
	purged := false
	q.Progress = func(now adapter.Replayed) {
		if now.Given > 0 && !purged {
			purged = true
			s, err := js.Stream(t.Context(), "shop")
			if err == nil {
				err = s.Purge(t.Context(), jetstream.WithPurgeSequence(1001))
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	done := run(t, p, q)
	if done.Gone == 0 || done.Gone+done.Given != n || done.Gone > 900 {
		t.Errorf("over a purge: %+v", done)
	}
	take(t, acked, int(done.Given))
}

// Whoever takes the private subject away from the group meanwhile is noticed, and
// the error says from where to go on.
func TestReplayWhoseFilterIsTakenAway(t *testing.T) {
	srv := testkit.Server(t)
	p := stored(t, srv.URL(), 10)
	acked := settling(t, p)
	take(t, acked, 10)
	js := jsClient(t, srv.URL())
	q := toGroup
	q.Progress = func(adapter.Replayed) {
		s, err := js.Stream(t.Context(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		for c := range s.ListConsumers(t.Context()).Info() {
			if c.Config.Durable == "" {
				continue
			}
			c.Config.FilterSubject, c.Config.FilterSubjects = "order.*", nil
			if _, err := js.UpdateConsumer(t.Context(), "shop", c.Config); err != nil {
				t.Error(err)
			}
		}
	}
	done, err := p.(adapter.Replayer).Replay(within(t), q)
	if err == nil || !strings.Contains(err.Error(), "go on from sequence 1, and do not resume") || done.Next != 1 {
		t.Errorf("%+v, %v", done, err)
	}
}

// A copy is a little larger than its original. One that the server cannot take
// stops the replay, and the error says which it is.
func TestReplayOfAnEventThatIsTooLarge(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) { o.MaxPayload = 4000 })
	p := stored(t, srv.URL(), 2)
	acked := settling(t, p)
	m := &adapter.Message{ID: "3", Topic: "order.placed", Source: "//shop/1", Data: make([]byte, 3800)}
	if err := p.Publish(within(t), m, adapter.Durable); err != nil {
		t.Fatal(err)
	}
	take(t, acked, 3)
	done, err := p.(adapter.Replayer).Replay(within(t), toGroup)
	if err == nil || done.Given != 2 || !strings.Contains(err.Error(), "the event at sequence 3 of stream shop") || !strings.Contains(err.Error(), "from sequence 4") {
		t.Errorf("%+v, %v", done, err)
	}
	if got := take(t, acked, 2); !slices.Equal(got, idsOf(1, 2)) {
		t.Errorf("given: %q", got)
	}
}

// Copies are stored many at once. Where the stream may not be told to take that,
// and where some of a batch are there already, it is one after the other.
func TestReplayInBatchesAndWithout(t *testing.T) {
	srv := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "less", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.UPDATE.>"}}}},
			{Username: "all", Password: "p"},
		}
	})
	url := strings.Replace(srv.URL(), "nats://", "nats://all:p@", 1)
	p := stored(t, url, 100)
	acked := settling(t, p)
	take(t, acked, 100)
	js := jsClient(t, url)
	for user, batches := range map[string]bool{"all": true, "less": false} {
		if m := (&adapter.Message{ID: "0", Topic: "order.placed", Source: "//shop/1"}); !batches { // has the subject captured
			if err := p.(adapter.Giver).Give(within(t), m, "g", "order.*", user); err != nil {
				t.Fatal(err)
			}
			take(t, acked, 1)
			cfg := streamInfo(t, js, "shop").Config
			cfg.AllowAtomicPublish = false
			if _, err := js.UpdateStream(within(t), cfg); err != nil {
				t.Fatal(err)
			}
		}
		a := open(t, strings.Replace(srv.URL(), "nats://", "nats://"+user+":p@", 1), adapter.Config{})
		if done := run(t, a, toGroup); done.Given != 100 {
			t.Errorf("%s: %+v", user, done)
		}
		if got := take(t, acked, 100); !slices.Equal(got, idsOf(1, 100)) {
			t.Errorf("%s: given: %q", user, got)
		}
		s, err := js.Stream(within(t), "shop")
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetLastMsgForSubject(within(t), "$TIDINGS.to.>")
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Header.Get("Nats-Batch-Id") != ""; got != batches {
			t.Errorf("%s: in a batch: %v", user, got)
		}
	}
}

// A batch of which the stream knows one already is refused as a whole: what is
// missing is stored then, and nothing twice.
func TestReplayResumedOverWhatAKilledOneHadOnTheWire(t *testing.T) {
	srv := testkit.Server(t)
	p := stored(t, srv.URL(), 100)
	acked := settling(t, p)
	take(t, acked, 100)
	run(t, p, toGroup)
	take(t, acked, 100)
	js := jsClient(t, srv.URL())
	s, err := js.Stream(within(t), "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{90, 80} { // copies of another run, in this order
		m, err := s.GetMsg(within(t), 100+seq)
		if err != nil {
			t.Fatal(err)
		}
		var mark map[string]any
		if err := json.Unmarshal([]byte(m.Header.Get(adapter.ReplayHeader)), &mark); err != nil {
			t.Fatal(err)
		}
		again := nats.NewMsg(m.Subject)
		again.Data = m.Data
		again.Header.Set(nats.MsgIdHdr, strings.Replace(m.Header.Get(nats.MsgIdHdr), mark["run"].(string), "killed", 1))
		mark["run"] = "killed"
		head, err := json.Marshal(mark)
		if err != nil {
			t.Fatal(err)
		}
		again.Header[adapter.ReplayHeader] = []string{string(head)}
		if _, err := js.PublishMsg(within(t), again); err != nil {
			t.Fatal(err)
		}
	}
	take(t, acked, 2)
	q := toGroup
	q.Resume = true
	if done := run(t, p, q); done.Given != 20 {
		t.Errorf("it gave %d", done.Given)
	}
	publish(t, p, adapter.Durable, "last", "order.placed")
	want := append(append(idsOf(81, 89), idsOf(91, 100)...), "last")
	if got := take(t, acked, 20); !slices.Equal(got, want) {
		t.Errorf("given: %q", got)
	}
}

// The consumers that a replay reads with come and go: who looks at the groups of
// the stream meanwhile, as the keeper does, is not disturbed.
func TestReplayDoesNotDisturbWhoLooksAtGroups(t *testing.T) {
	srv := testkit.Server(t)
	p := stored(t, srv.URL(), 50)
	take(t, settling(t, p), 50)
	admin, err := natsbus.OpenAdmin(within(t), srv.URL(), adapter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(within(t))
	q := toGroup
	q.DryRun = true
	replaying := loop.Go(func(context.Context) {
		for ctx.Err() == nil {
			if _, err := p.(adapter.Replayer).Replay(ctx, q); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for range 300 {
		if _, err := admin.Streams(within(t)); err != nil {
			t.Error(err)
			break
		}
	}
	cancel()
	replaying.StopAndWait()
	if err := admin.Close(); err != nil {
		t.Error(err)
	}
}
