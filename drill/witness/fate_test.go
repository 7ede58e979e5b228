package witness

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
)

// fare is how the handler of an event with that fate fares.
func fare(ctx context.Context, t *testing.T, w *Witness, f Fate) (errs []error, panics int) {
	t.Helper()
	bus, err := tidings.New(tidings.Options{App: "billing", OnError: func(context.Context, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bus.Close() }()
	_, err = bus.Subscribe(t.Context(), "order.placed", func(_ context.Context, e tidings.Event) (err error) {
		defer func() {
			if p := recover(); p != nil {
				panics++
				panic(p)
			}
			errs = append(errs, err)
		}()
		return w.Suffer(ctx, e, f)
	}, &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(t.Context(), "order.placed", nil); err != nil {
		t.Fatal(err)
	}
	return errs, panics
}

func TestAFateIsLivedUntilItIsMended(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir, "subscriber", "billing")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the drain is over"))
	for range 2 {
		if errs, _ := fare(over, t, w, Poison); len(errs) != 1 || errs[0] == nil {
			t.Errorf("poison: %v", errs)
		}
	}
	if _, panics := fare(over, t, w, Panics); panics != 1 {
		t.Errorf("panics: %d", panics)
	}
	if errs, _ := fare(over, t, w, Slow); len(errs) != 1 || errs[0] == nil || !strings.Contains(errs[0].Error(), "drain is over") {
		t.Errorf("slow: %v", errs)
	}
	if errs, _ := fare(over, t, nil, Poison); len(errs) != 1 || errs[0] != nil {
		t.Errorf("outside a drill: %v", errs)
	}
	if err := Mend(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []Fate{Poison, Panics, Deadly, Long, Slow, Stubborn} {
		if errs, panics := fare(over, t, w, f); len(errs) != 1 || errs[0] != nil || panics > 0 {
			t.Errorf("%s, mended: %v, %d panics", f, errs, panics)
		}
	}
	if errs, _ := fare(over, t, w, Flaky); len(errs) != 1 || errs[0] == nil {
		t.Errorf("flaky is not mended: %v", errs)
	}
}

func TestAReceiptNamesWhatWasLeft(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir, "subscriber", "billing")
	if err != nil {
		t.Fatal(err)
	}
	w.Plan("order.placed", "shop:1", "customer-1", Slow)
	back, unsure := tidings.Event{}, tidings.Event{}
	w.Receipt(errors.Join(errors.New("more"), &tidings.LeftError{HandedBack: []tidings.Event{back}, Unconfirmed: []tidings.Event{unsure, unsure}, Err: errors.New("late")}),
		func(tidings.Event) string { return "shop:1" })
	w.Receipt(errors.New("no receipt"), nil)
	w.Close()
	count := map[string]int{}
	for _, l := range lines(t, dir) {
		switch l.Kind {
		case Plan:
			count[l.Fields[2]+" "+l.Fields[3]]++
		case Left:
			count[l.Fields[1]+" "+l.Fields[2]]++
		}
	}
	if len(count) != 3 || count["customer-1 slow"] != 1 || count["shop:1 "+LeftBack] != 1 || count["shop:1 "+LeftUnsure] != 2 {
		t.Errorf("%v", count)
	}
}
