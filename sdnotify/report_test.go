//go:build unix

package sdnotify_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
)

// A report of any size arrives whole, over a real socket whose datagrams are bounded.
func TestReportArrivesWhole(t *testing.T) {
	path := socketPath(t)
	got := make(chan sdnotify.Message, 1000) // more than datagrams are sent
	r, err := sdnotify.Receive(path, func(m sdnotify.Message) { got <- m })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	sent := sdnotify.Report{Version: "v1", Until: 1 << 62, Final: true}
	for i := range 60 {
		sent.Subscriptions = append(sent.Subscriptions, sdnotify.SubscriptionReport{Pattern: fmt.Sprintf("order.%d", i), Group: "billing", Durable: true, Queued: i,
			Received: 1<<64 - 1, Acked: uint64(i), Lag: 1<<64 - 1, LagKnown: true, ActiveFrom: 1 << 62, Active: strings.Repeat("f", 128)})
	}
	for i := range 3 {
		sent.Left = append(sent.Left, sdnotify.LeftReport{Pattern: fmt.Sprintf("order.%d", i), Group: "billing", IDs: ids("back", 4000*i), Unconfirmed: ids("done", 2000-i)})
	}
	for n := range 2 {
		if err := sent.Send(); err != nil {
			t.Fatal(err)
		}
		datagrams, whole := collect(t, got) // none of more than MaxDatagram bytes: that is sent as an error
		if !reflect.DeepEqual(*whole, sent) {
			t.Errorf("%d: got %+v", n, whole)
		}
		if datagrams < 2 {
			t.Errorf("%d: %d datagrams: this tests nothing", n, datagrams)
		}
	}
	// Texts that would not fit are cut; every byte of this one is escaped.
	long := strings.Repeat("\x01<", 4000)
	if err := (sdnotify.Report{Version: long, Subscriptions: []sdnotify.SubscriptionReport{{Name: long, Pattern: long, Group: long}},
		Left: []sdnotify.LeftReport{{Pattern: long, Group: long, IDs: []string{long, long, "short"}}}}).Send(); err != nil {
		t.Fatal(err)
	}
	_, whole := collect(t, got)
	if len(whole.Subscriptions) != 1 || len(whole.Left) != 1 || len(whole.Left[0].IDs) != 3 || !strings.HasPrefix(long, strings.TrimSuffix(whole.Subscriptions[0].Pattern, "…")) {
		t.Errorf("cut: %+v", whole)
	}
}

func ids(of string, n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("%s-nonce-1234567890-%d", of, i))
	}
	return ids
}

// FuzzReportLeft: whatever ids and names are like, each comes through, once and in
// order, in datagrams that fit.
func FuzzReportLeft(f *testing.F) {
	f.Add("order.*", "billing", "id", uint16(300), uint16(3))
	f.Add("\x00\u2028\"", "<&>", "é\n\x01", uint16(70), uint16(900))
	f.Add(strings.Repeat("p", 900), strings.Repeat("\x01", 151), strings.Repeat("\\", 150), uint16(40), uint16(0))
	f.Fuzz(func(t *testing.T, pattern, group, id string, back, unconfirmed uint16) {
		sent := sdnotify.Report{Final: true, Subscriptions: []sdnotify.SubscriptionReport{{Pattern: pattern, Name: id, Group: group}},
			Left: []sdnotify.LeftReport{{Pattern: "first", IDs: []string{"1"}}, {Pattern: pattern, Group: group, IDs: ids(id, int(back%2000)), Unconfirmed: ids(id, int(unconfirmed%2000))}}}
		lines, err := sent.Lines()
		if err != nil {
			t.Fatal(err)
		}
		var parts sdnotify.Reports
		var whole *sdnotify.Report
		for i, line := range lines {
			m := sdnotify.Parse([]byte(line))
			if len(m.Bad) > 0 {
				t.Fatalf("datagram %d of %d bytes cannot be read", i, len(line))
			}
			if whole, err = parts.Take(m); err != nil || (whole != nil) != (i == len(lines)-1) {
				t.Fatalf("datagram %d of %d: %v, whole %v", i, len(lines), err, whole != nil)
			}
		}
		left := whole.Left[len(whole.Left)-1]
		if n := int(back % 2000); n > 0 && (len(left.IDs) != n || !same(left.IDs, ids(id, n))) {
			t.Errorf("%d ids of %d, or others", len(left.IDs), n)
		}
		if n := int(unconfirmed % 2000); n > 0 && (len(left.Unconfirmed) != n || !same(left.Unconfirmed, ids(id, n))) {
			t.Errorf("%d unconfirmed of %d, or others", len(left.Unconfirmed), n)
		}
	})
}

// same: long ones are cut, and bytes that are no text are replaced.
func same(got, sent []string) bool {
	for i := range got {
		if want := strings.ToValidUTF8(sent[i], "?"); !strings.HasPrefix(want, strings.TrimSuffix(got[i], "…")) || len(want) <= 150 && got[i] != want {
			return false
		}
	}
	return true
}

func collect(t *testing.T, got <-chan sdnotify.Message) (datagrams int, whole *sdnotify.Report) {
	t.Helper()
	var parts sdnotify.Reports
	timeout := time.After(20 * time.Second)
	for {
		select {
		case m := <-got:
			datagrams++
			r, err := parts.Take(m)
			if err != nil || len(m.Bad) > 0 {
				t.Fatalf("%v, bad lines %q", err, m.Bad)
			}
			if r != nil {
				return datagrams, r
			}
		case <-timeout:
			t.Fatalf("no report; %d datagrams came", datagrams)
		}
	}
}

// What is lost or mad ends a report, and not the next one.
func TestReportsDropWhatIsNotWhole(t *testing.T) {
	line := func(text string) sdnotify.Message { return sdnotify.Parse([]byte("X_TIDINGS_REPORT=" + text)) }
	var r sdnotify.Reports
	for _, text := range []string{
		`{"part":2,"parts":2}`, `{"part":1,"parts":3,"version":"old"}`, `{"part":3,"parts":3}`,
		`{"part":0,"parts":0}`, `{"part":1,"parts":0}`, `{"part":1,"parts":2,"version":"old"}`,
	} {
		if got, err := r.Take(line(text)); got != nil || err != nil {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	if got, err := r.Take(line(`{"part":`)); got != nil || err == nil {
		t.Errorf("cut JSON: %+v, %v", got, err)
	}
	if got, err := r.Take(line(`{"part":2,"parts":2}`)); got != nil || err != nil {
		t.Errorf("after an error: %+v, %v", got, err)
	}
	if got, err := r.Take(line(`{"part":1,"parts":1,"version":"v"}`)); err != nil || got == nil || got.Version != "v" {
		t.Errorf("whole: %+v, %v", got, err)
	}
	if got, err := r.Take(sdnotify.Message{Other: []string{"X_OTHER=1"}}); got != nil || err != nil {
		t.Errorf("another's: %+v, %v", got, err)
	}
}
