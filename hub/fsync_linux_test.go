package hub_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/synctrace"
	"github.com/tidings-go/tidings/internal/testkit"
)

// What is published while the server is traced.
const (
	publishers = 8  // that wait for each acknowledgement
	each       = 25 // messages of each
	window     = 150
	batches    = 3
	batchSize  = 40
)

// Nothing that the hub acknowledges, one by one or as a batch, leaves before it is
// synced: of each acknowledgement that a client got, the order of the system calls
// is looked at.
func TestFsyncPrecedesEachAck(t *testing.T) {
	got, v := traced(t, "hub")
	if len(v.Violations) > 0 {
		t.Errorf("%d of %d messages were acknowledged before they were on disk; the first: %s", len(v.Violations), v.Messages, v.Violations[0])
	}
	atLeast(t, got, v)
	t.Logf("%d acknowledgements of %d messages, %d syncs", len(v.Acks), v.Messages, v.Syncs)
}

// The same check finds nats-server's own default to be what it is, or it would show
// nothing of the hub.
func TestFsyncCheckFailsOnTheDefault(t *testing.T) {
	got, v := traced(t, "default")
	atLeast(t, got, v)
	if len(v.Violations) < v.Messages/2 {
		t.Errorf("the check finds %d messages of %d that a server without SyncAlways acknowledged before they were on disk: it is blind", len(v.Violations), v.Messages)
	}
	t.Logf("%d of %d messages were acknowledged before they were on disk", len(v.Violations), v.Messages)
}

// atLeast checks that the trace has every acknowledgement that a client got.
func atLeast(t *testing.T, got map[uint64]int, v synctrace.Verdict) {
	t.Helper()
	seen := map[uint64]int{}
	for _, a := range v.Acks {
		if a.Stream == "TRACED" {
			seen[a.Seq] = a.Count
		}
	}
	for seq, count := range got {
		if seen[seq] != count {
			t.Errorf("a client got the acknowledgement of %d messages up to %d, and the trace has one of %d", count, seq, seen[seq])
		}
	}
	if want := publishers*each + window + batches*batchSize; v.Messages < want {
		t.Errorf("the trace has acknowledgements of %d messages, and %d were published", v.Messages, want)
	}
}

// traced publishes to a server that strace watches, and returns how many messages
// each acknowledgement was of that a client got, by the sequence of the last.
func traced(t *testing.T, role string) (map[uint64]int, synctrace.Verdict) {
	t.Helper()
	strace := testkit.Program(t, "strace", "strace")
	file := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, append(synctrace.Args(file), os.Args[0])...)
	cmd.Env = append(os.Environ(), as(role, t.TempDir())...)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var pid int
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // the test has failed
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	lines := bufio.NewScanner(out)
	pid, err = strconv.Atoi(said(t, lines, "pid"))
	must(t, err)
	got := publishAll(t, said(t, lines, "url"))
	must(t, syscall.Kill(pid, syscall.SIGTERM))
	if lines.Scan() {
		t.Errorf("the server says %q", lines.Text())
	}
	must(t, cmd.Wait())
	trace, err := os.Open(file)
	must(t, err)
	defer trace.Close()
	v, err := synctrace.Check(trace)
	must(t, err)
	return got, v
}

// said is what follows a word on the next line.
func said(t *testing.T, lines *bufio.Scanner, word string) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the process ended before it said its %s: %v", word, lines.Err())
	}
	text, ok := strings.CutPrefix(lines.Text(), word+" ")
	if !ok {
		t.Fatalf("the process says %q, want its %s", lines.Text(), word)
	}
	return text
}

// publishAll publishes from several connections at once: messages that are waited
// for, a window of messages, and batches.
func publishAll(t *testing.T, url string) map[uint64]int {
	t.Helper()
	got := &gotten{counts: map[uint64]int{}}
	js := connect(t, url)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "TRACED", Subjects: []string{"traced.>"}, Storage: jetstream.FileStorage, AllowAtomicPublish: true})
	must(t, err)
	var all []*loop.Loop
	start := func(f func(context.Context, jetstream.JetStream) error) {
		js := connect(t, url)
		all = append(all, loop.Go(func(context.Context) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := f(ctx, js); err != nil {
				t.Error(err)
			}
		}))
	}
	for p := range publishers {
		start(func(ctx context.Context, js jetstream.JetStream) error {
			return got.one(ctx, js, fmt.Sprint("traced.one.", p))
		})
	}
	start(got.many)
	start(got.batches)
	for _, l := range all {
		must(t, l.Wait(t.Context()))
	}
	return got.counts
}

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	addr, secret := token(t, url)
	nc, err := nats.Connect(addr, nats.Token(secret), nats.Timeout(patience))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return js
}

// gotten is what was acknowledged.
type gotten struct {
	mu     sync.Mutex
	counts map[uint64]int
}

func (g *gotten) note(seq uint64, count int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts[seq] = count
}

func (g *gotten) one(ctx context.Context, js jetstream.JetStream, subject string) error {
	for i := range each {
		ack, err := js.Publish(ctx, subject, fmt.Appendf(nil, "message %d", i))
		if err != nil {
			return err
		}
		g.note(ack.Sequence, 1)
	}
	return nil
}

func (g *gotten) many(ctx context.Context, js jetstream.JetStream) error {
	var acks []jetstream.PubAckFuture
	for i := range window {
		f, err := js.PublishAsync("traced.many", fmt.Appendf(nil, "message %d of a window", i))
		if err != nil {
			return err
		}
		acks = append(acks, f)
	}
	for _, f := range acks {
		select {
		case ack := <-f.Ok():
			g.note(ack.Sequence, 1)
		case err := <-f.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (g *gotten) batches(ctx context.Context, js jetstream.JetStream) error {
	for b := range batches {
		for i := 1; i < batchSize; i++ {
			if err := js.Conn().PublishMsg(member(b, i)); err != nil {
				return err
			}
		}
		last := member(b, batchSize)
		last.Header.Set("Nats-Batch-Commit", "1")
		reply, err := js.Conn().RequestMsgWithContext(ctx, last)
		if err != nil {
			return err
		}
		var ack struct {
			Seq   uint64          `json:"seq"`
			Count int             `json:"count"`
			Error json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Count != batchSize {
			return fmt.Errorf("batch %d of %d is answered by %s (%v)", b, batchSize, reply.Data, err)
		}
		g.note(ack.Seq, ack.Count)
	}
	return nil
}

// member is a message of a batch.
func member(batch, place int) *nats.Msg {
	m := nats.NewMsg("traced.batch")
	m.Header.Set("Nats-Batch-Id", fmt.Sprint("batch-", batch))
	m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(place))
	m.Data = fmt.Appendf(nil, "message %d of batch %d", place, batch)
	return m
}
