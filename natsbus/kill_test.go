package natsbus_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/natsbus"
)

// memberEnv makes this binary a process of the group: it holds what it gets and
// is to be killed. Of the numbers above settleEnv it settles every third.
const (
	memberEnv = "TIDINGS_TEST_MEMBER"
	settleEnv = "TIDINGS_TEST_SETTLE_ABOVE"
)

func member(url string) {
	fail := func(err error) {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	ctx := context.Background()
	above, _ := strconv.Atoi(os.Getenv(settleEnv))
	a, err := natsbus.Open(ctx, url, adapter.Config{App: "shop", Instance: "child"})
	if err != nil {
		fail(err)
	}
	_, err = a.Subscribe(ctx, groupSpec(func(d adapter.Delivery) {
		if n, _ := strconv.Atoi(d.ID); above > 0 && n > above && n%3 == 0 {
			d.Settle.Ack(func(err error) { fmt.Println("settled", d.ID, err) })
			return
		}
		fmt.Println("holds", d.ID)
	}))
	if err != nil {
		fail(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
}

func groupSpec(deliver func(adapter.Delivery)) adapter.Spec {
	return adapter.Spec{Pattern: "order.*", Group: "g", Durable: true, Deliver: deliver}
}

// child starts a member and returns once it has said n lines.
func child(t *testing.T, url string, n int, env ...string) (kill func(), lines []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), memberEnv+"="+url), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	for r := bufio.NewScanner(out); len(lines) < n; lines = append(lines, r.Text()) {
		if !r.Scan() || strings.HasPrefix(r.Text(), "failed") {
			t.Fatalf("after %q: %q %v", lines, r.Text(), r.Err())
		}
	}
	return kill, lines
}

func stored(t *testing.T, url string, n int) adapter.Adapter {
	t.Helper()
	p := open(t, url, adapter.Config{Durable: []string{"order.>"}})
	for i := range n {
		publish(t, p, adapter.Durable, strconv.Itoa(i+1), "order.placed")
	}
	return p
}

// kill -9 of the only process of a group: the next one gets at once what it had,
// in order, counted as delivered before; and nothing that was settled, out of
// order too.
func TestTheNextProcessTakesOverFromOneThatWasKilled(t *testing.T) {
	srv := testkit.Server(t)
	const n = 200
	stored(t, srv.URL(), n)
	kill, lines := child(t, srv.URL(), n, settleEnv+"=100")
	var want []string
	for _, l := range lines {
		if id, held := strings.CutPrefix(l, "holds "); held {
			want = append(want, id)
		}
	}
	if len(want) == n || len(want) < n/2 {
		t.Fatalf("the child holds %d events", len(want))
	}
	kill()
	a := open(t, srv.URL(), adapter.Config{})
	got := make(chan adapter.Delivery, n)
	began := time.Now()
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { d.Settle.Ack(nil); got <- d }))
	var ids []string
	for i := range want {
		d := receive(t, got)
		if took := time.Since(began); i == 0 {
			t.Logf("first redelivery after %v", took)
			if took > time.Second { // 100 ms on an idle machine; the ack wait is 5 s
				t.Errorf("the first redelivery took %v", took)
			}
		}
		if ids = append(ids, d.ID); d.Attempt != 2 {
			t.Errorf("event %s is delivery %d, want 2", d.ID, d.Attempt)
		}
	}
	if !slices.Equal(ids, want) {
		t.Errorf("came: %v\nwant: %v", ids, want)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	if len(got) > 0 {
		t.Errorf("%d events too many, %s first", len(got), (<-got).ID)
	}
}

// An event that kills its process is delivered with a higher number each time, so
// that what bounds deliveries sees it.
func TestDeliveriesAreCountedOverKills(t *testing.T) {
	srv := testkit.Server(t)
	stored(t, srv.URL(), 3)
	for range 3 {
		kill, _ := child(t, srv.URL(), 3)
		kill()
	}
	got := make(chan adapter.Delivery, 3)
	sub := subscribe(t, open(t, srv.URL(), adapter.Config{}), groupSpec(func(d adapter.Delivery) { d.Settle.Ack(nil); got <- d }))
	for range 3 {
		if d := receive(t, got); d.Attempt != 4 {
			t.Errorf("event %s is delivery %d, want 4", d.ID, d.Attempt)
		}
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// While another process of the group lives, nothing is taken from it: what the
// dead one had comes back after the ack wait.
func TestNothingIsTakenFromTheLiving(t *testing.T) {
	srv := testkit.Server(t)
	const each = 20
	p := stored(t, srv.URL(), each)
	kill, _ := child(t, srv.URL(), each)
	mine := make(chan adapter.Delivery, 1000)
	subscribe(t, open(t, srv.URL(), adapter.Config{}), groupSpec(func(d adapter.Delivery) { mine <- d })) // settles nothing yet
	held, n := map[string]adapter.Delivery{}, each
	for ; len(held) < 5; n++ { // the child gets its share
		publish(t, p, adapter.Durable, strconv.Itoa(1000+n), "order.placed")
		select {
		case d := <-mine:
			held[d.ID] = d
		case <-time.After(5 * time.Millisecond):
		}
	}
	kill()
	began := time.Now()
	next := make(chan adapter.Delivery, 1000)
	subscribe(t, open(t, srv.URL(), adapter.Config{}), groupSpec(func(d adapter.Delivery) { d.Settle.Ack(nil); next <- d }))
	early := 0
	note := func(d adapter.Delivery) {
		if d.Attempt > 1 && time.Since(began) < time.Second {
			early++
		}
	}
	for total := len(held); total < n; total++ {
		select {
		case d := <-mine:
			held[d.ID] = d
			note(d)
			d.Settle.Ack(nil)
		case d := <-next:
			if _, doubled := held[d.ID]; doubled {
				t.Errorf("event %s is held by a process that lives and came to another", d.ID)
			}
			note(d)
		case <-time.After(patience):
			t.Fatalf("%d events came", total)
		}
	}
	if early > 0 {
		t.Errorf("%d events were delivered again before the ack wait although two processes live", early)
	}
}

// The one that is left takes over from the other, and keeps what it has itself.
func TestTheSurvivorTakesOver(t *testing.T) {
	srv := testkit.Server(t)
	const n = 50
	stored(t, srv.URL(), n)
	kill, _ := child(t, srv.URL(), n)
	got := make(chan adapter.Delivery, 3*n)
	a := open(t, srv.URL(), adapter.Config{})
	sub := subscribe(t, a, groupSpec(func(d adapter.Delivery) { got <- d }))
	for i := range 5 {
		publish(t, open(t, srv.URL(), adapter.Config{Durable: []string{"order.>"}}), adapter.Durable, "mine"+strconv.Itoa(i), "order.placed")
	}
	var held []adapter.Delivery
	for range 5 { // the child is at no bound, and may take some of these too
		select {
		case d := <-got:
			held = append(held, d)
		case <-time.After(300 * time.Millisecond):
		}
	}
	kill()
	began := time.Now()
	for total := len(held); total < n+5; total++ {
		d := receive(t, got)
		d.Settle.Ack(nil)
		if d.Attempt != 2 && !strings.HasPrefix(d.ID, "mine") {
			t.Errorf("event %s is delivery %d", d.ID, d.Attempt)
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v: that was the ack wait", took)
	}
	for _, d := range held {
		d.Settle.Ack(nil)
	}
	if err := sub.Close(within(t)); err != nil {
		t.Error(err)
	}
	if len(got) > 0 {
		t.Errorf("%d events came twice", len(got))
	}
}

// An adapter that was closed at once leaves what it had to the others at once too.
func TestACloseAtOnceCostsNoAckWait(t *testing.T) {
	srv := testkit.Server(t)
	stored(t, srv.URL(), 10)
	a := open(t, srv.URL(), adapter.Config{})
	got := make(chan adapter.Delivery, 30)
	subscribe(t, a, groupSpec(func(d adapter.Delivery) { got <- d }))
	for range 10 {
		receive(t, got)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	began := time.Now()
	subscribe(t, open(t, srv.URL(), adapter.Config{}), groupSpec(func(d adapter.Delivery) { d.Settle.Ack(nil); got <- d }))
	for range 10 {
		receive(t, got)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

// consumerOf finds the only consumer of the stream.
func consumerOf(t *testing.T, js jetstream.JetStream) *jetstream.ConsumerInfo {
	t.Helper()
	s, err := js.Stream(within(t), "shop")
	if err != nil {
		t.Fatal(err)
	}
	var found *jetstream.ConsumerInfo
	list := s.ListConsumers(within(t))
	for info := range list.Info() {
		found = info
	}
	if list.Err() != nil || found == nil {
		t.Fatalf("no consumer: %v", list.Err())
	}
	return found
}

var discard = slog.New(slog.DiscardHandler)
