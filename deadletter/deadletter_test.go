package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidings-go/tidings/adapter"
	_ "github.com/tidings-go/tidings/adapter/memory"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/internal/testkit"
	_ "github.com/tidings-go/tidings/natsbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// grave has dead letters, two of each of two groups: of order.placed because of the
// customer, of order.paid because of the bank.
func grave(t *testing.T, url, prefix string) {
	t.Helper()
	a, err := adapter.Open(within(t), url, adapter.Config{App: "shop", Instance: "1", Prefix: prefix, Durable: []string{"order.>"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"billing", "audit"} {
		done := make(chan error, 4)
		sub, err := a.Subscribe(within(t), adapter.Spec{Pattern: "order.*", Group: group, Durable: true, Deliver: func(d adapter.Delivery) {
			l := &adapter.DeadLetter{Group: group, Pattern: "order.*", Reason: "no Customer", Stack: "stack", Last: time.Unix(int64(d.Sequence)*1000, 0)}
			if d.Topic == "order.paid" {
				l.Reason = "no bank"
			}
			d.Settle.Dead(l, func(err error) { done <- err })
		}})
		if err != nil {
			t.Fatal(err)
		}
		if group == "billing" {
			for _, topic := range []string{"order.placed", "order.paid"} {
				m := &adapter.Message{ID: prefix + topic, Topic: topic, Source: "//shop/1", Data: []byte("payload")}
				if err := a.Publish(within(t), m, adapter.Durable); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errors.Join(<-done, <-done, sub.Close(within(t))); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, url, prefix string) *deadletter.Store {
	t.Helper()
	s, err := deadletter.Open(within(t), url, deadletter.Options{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// names are the letters as "group topic", sorted.
func names(t *testing.T, s *deadletter.Store, sel deadletter.Selection) (out []string) {
	t.Helper()
	for l, err := range s.List(within(t), sel) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l.Group+" "+l.Event.Topic)
	}
	slices.Sort(out)
	return out
}

func overTransports(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("memory", func(t *testing.T) { test(t, "mem:"+t.Name()) })
	t.Run("nats", func(t *testing.T) { test(t, testkit.Server(t).URL()) })
}

func TestSelection(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		grave(t, url, "")
		s := open(t, url, "")
		var some deadletter.Selection
		for l, err := range s.List(within(t), deadletter.Selection{Group: "audit"}) {
			if err != nil {
				t.Fatal(err)
			}
			some.IDs = append(some.IDs, l.ID)
			break // the loop may be left
		}
		for _, c := range []struct {
			sel  deadletter.Selection
			want int
		}{
			{deadletter.Selection{}, 4},
			{deadletter.Selection{All: true}, 4},
			{deadletter.Selection{Group: "billing"}, 2},
			{deadletter.Selection{Group: "nobody"}, 0},
			{deadletter.Selection{Topic: "order.placed"}, 2},
			{deadletter.Selection{Topic: "order.*", Group: "audit"}, 2},
			{deadletter.Selection{Topic: "cart.*"}, 0},
			{deadletter.Selection{Reason: "CUSTOMER"}, 2},
			{deadletter.Selection{Since: time.Unix(1500, 0)}, 2},
			{deadletter.Selection{Since: time.Unix(1500, 0), Reason: "customer"}, 0},
			{some, 1},
		} {
			if got := names(t, s, c.sel); len(got) != c.want {
				t.Errorf("%+v selects %q, want %d", c.sel, got, c.want)
			}
			if !c.sel.All && c.want != 4 {
				n, err := s.Redrive(within(t), c.sel, deadletter.Action{DryRun: true})
				if n != c.want || err != nil {
					t.Errorf("a dry run of %+v: %d, %v", c.sel, n, err)
				}
			}
		}
		if n := len(names(t, s, deadletter.Selection{})); n != 4 {
			t.Errorf("%d are left after dry runs", n)
		}
	})
}

func TestBadSelections(t *testing.T) {
	s := open(t, "mem:"+t.Name(), "")
	for want, sel := range map[string]deadletter.Selection{
		"All":       {},
		"All means": {All: true, Group: "x"},
		"bad topic": {Topic: "a..b"},
	} {
		for op, f := range map[string]func(context.Context, deadletter.Selection, deadletter.Action) (int, error){"redrive": s.Redrive, "drop": s.Drop} {
			if n, err := f(within(t), sel, deadletter.Action{}); n != 0 || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), op) {
				t.Errorf("%s %+v: %d, %v", op, sel, n, err)
			}
		}
	}
	if _, err := s.Get(within(t), "x:1:y"); !errors.Is(err, deadletter.ErrNoLetter) {
		t.Errorf("Get: %v", err)
	}
	if n, err := s.Drop(within(t), deadletter.Selection{IDs: []string{"x:1:y"}}, deadletter.Action{}); n != 0 || !errors.Is(err, deadletter.ErrNoLetter) {
		t.Errorf("Drop: %d, %v", n, err)
	}
	for _, url := range []string{"", "carrier-pigeon:loft", "nats://127.0.0.1:1"} {
		if _, err := deadletter.Open(within(t), url, deadletter.Options{}); err == nil {
			t.Errorf("%q was opened", url)
		}
	}
	if _, err := deadletter.Open(within(t), "mem:x", deadletter.Options{Prefix: "a b"}); err == nil || !strings.Contains(err.Error(), "Options.Prefix") {
		t.Errorf("a bad prefix: %v", err)
	}
}

func TestDropAndRedriveTellOfEach(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		grave(t, url, "")
		s := open(t, url, "")
		var told []string
		act := deadletter.Action{Tell: func(l *deadletter.Letter, err error) {
			told = append(told, fmt.Sprint(l.Group, " ", l.Event.Topic, " ", err))
		}}
		if n, err := s.Redrive(within(t), deadletter.Selection{Group: "billing"}, act); n != 2 || err != nil {
			t.Errorf("Redrive: %d, %v", n, err)
		}
		// In the order of their stream, in whatever order they died.
		if want := []string{"billing order.placed <nil>", "billing order.paid <nil>"}; !slices.Equal(told, want) {
			t.Errorf("told %q", told)
		}
		if n, err := s.Drop(within(t), deadletter.Selection{Topic: "order.paid"}, act); n != 1 || err != nil {
			t.Errorf("Drop: %d, %v", n, err)
		}
		if left := names(t, s, deadletter.Selection{}); !slices.Equal(left, []string{"audit order.placed"}) {
			t.Errorf("left: %q", left)
		}
		over, cancel := context.WithCancel(within(t))
		cancel()
		if n, err := s.Drop(over, deadletter.Selection{All: true}, act); n != 0 || err == nil {
			t.Errorf("with a context that has ended: %d, %v", n, err)
		}
	})
}

// Environments that share a broker see their own letters only.
func TestPrefix(t *testing.T) {
	overTransports(t, func(t *testing.T, url string) {
		for _, prefix := range []string{"staging.eu", "staging", ""} {
			grave(t, url, prefix)
			s := open(t, url, prefix)
			if got := names(t, s, deadletter.Selection{Group: "audit", Topic: "order.placed"}); len(got) != 1 {
				t.Errorf("prefix %q: %q", prefix, got)
			}
			if n, err := s.Redrive(within(t), deadletter.Selection{Group: "audit", Topic: "order.placed"}, deadletter.Action{}); n != 1 || err != nil {
				t.Errorf("prefix %q: Redrive: %d, %v", prefix, n, err)
			}
			if n, err := s.Drop(within(t), deadletter.Selection{All: true}, deadletter.Action{}); n != 3 || err != nil {
				t.Errorf("prefix %q: Drop: %d, %v", prefix, n, err)
			}
		}
	})
}
