package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func bus(t *testing.T) *tidings.Bus {
	t.Helper()
	b, err := tidings.Open(t.Context(), "mem:"+t.Name(), tidings.Options{App: "shop", Instance: "one", OnError: func(context.Context, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// What a bus does is on the page, by Prometheus' own parser.
func TestHandler(t *testing.T) {
	b := bus(t)
	ctx := t.Context()
	fails := func(context.Context, tidings.Event) error { return errors.New("no") }
	for range 2 { // alike: told apart by their number
		if _, err := b.Subscribe(ctx, `order.*`, fails, &tidings.SubscribeOptions{Name: "quo\"te\\d"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := b.Publish(ctx, "order.placed", 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Debugger().Idle(ctx); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	Handler(b).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(w.Body.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, w.Body)
	}
	failed := families["tidings_subscription_failed_total"].GetMetric()
	if len(failed) != 2 {
		t.Fatalf("%d series of two subscriptions:\n%s", len(failed), w.Body)
	}
	for i, m := range failed {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["n"] != fmt.Sprint(i+1) || labels["name"] != "quo\"te\\d" || labels["app"] != "shop" || m.GetCounter().GetValue() != 3 {
			t.Errorf("%v: %v", labels, m)
		}
	}
	if v := families["tidings_transport_connected"].GetMetric()[0].GetGauge().GetValue(); v != 1 {
		t.Errorf("connected: %v", v)
	}
	seen := map[string]bool{}
	for m := range Of(b) {
		labels := fmt.Sprint(m.Name, m.Labels)
		if seen[labels] {
			t.Errorf("twice: %s", labels)
		}
		seen[labels] = true
	}
}

// Every number of a Snapshot is a metric: one that is added is not forgotten here.
func TestNothingIsLeftOut(t *testing.T) {
	base := func() state {
		return state{Snapshot: tidings.Snapshot{Attached: true, Topics: []tidings.TopicInfo{{}}, Subscriptions: []tidings.SubscriptionInfo{{LagKnown: true}}}}
	}
	values := func(s state) (all []float64) {
		for m := range of(s) {
			all = append(all, m.Value)
		}
		return all
	}
	before := values(base())
	fields := func(name string, in func(*state) reflect.Value, but ...string) {
		s := base()
		for i := range in(&s).NumField() {
			f := in(&s).Type().Field(i)
			s := base()
			switch v := in(&s).Field(i); {
			case !f.IsExported() || slices.Contains(but, f.Name):
				continue
			case v.Kind() == reflect.Bool:
				v.SetBool(true)
			case v.CanInt():
				v.SetInt(7)
			case v.CanUint():
				v.SetUint(7)
			case f.Name == "Hung":
				v.Set(reflect.ValueOf(make([]tidings.Hung, 1)))
			case v.Type() == reflect.TypeFor[tidings.Latency]():
				v.Set(reflect.ValueOf(tidings.Latency{P50: 7}))
			default:
				continue
			}
			if slices.Equal(values(s), before) {
				t.Errorf("%s.%s changes no metric", name, f.Name)
			}
		}
	}
	fields("Snapshot", func(s *state) reflect.Value { return reflect.ValueOf(&s.Snapshot).Elem() }, "Attached")
	fields("Stats", func(s *state) reflect.Value { return reflect.ValueOf(&s.Transport).Elem() })
	fields("TopicInfo", func(s *state) reflect.Value { return reflect.ValueOf(&s.Topics[0]).Elem() })
	// Durable, Inline: labels and how it runs. Left: of what has ended. LagKnown: whether Lag is there.
	fields("SubscriptionInfo", func(s *state) reflect.Value { return reflect.ValueOf(&s.Subscriptions[0]).Elem() }, "Durable", "Inline", "Ended", "Left", "LagKnown")
}

func Example() {
	b, err := tidings.New(tidings.Options{App: "shop", Instance: "one"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	for m := range Of(b) { // in your own exporter
		fmt.Println(m.Name, m.Kind, m.Value)
	}
	// Output:
	// tidings_problems gauge 0
	// tidings_dropped_total counter 0
}
