package drill

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/tidings-go/tidings/drill/witness"
	"github.com/tidings-go/tidings/internal/loop"
)

// A wire is a transport of numbers that can be told to misbehave.
type wire func(numbers []int) []int

func honest(n []int) []int { return n }

func losing(lost int) wire {
	return func(n []int) []int { return slices.DeleteFunc(n, func(x int) bool { return x == lost }) }
}

func doubling(twice int) wire {
	return func(n []int) []int { return slices.Insert(n, slices.Index(n, twice), twice) }
}

func swapping(early int) wire {
	return func(n []int) []int {
		i := slices.Index(n, early)
		n[i], n[i+1] = n[i+1], n[i]
		return n
	}
}

const overWire = 120 // events, more than a generation must show

// drive publishes over the wire, handles what comes out of it, and judges the
// journals that both have written to files.
func drive(t *testing.T, topic string, w wire) *Verdict {
	t.Helper()
	dir := t.TempDir()
	pub, err := witness.Open(dir, "publisher", "shop")
	if err != nil {
		t.Fatal(err)
	}
	sub, err := witness.Open(dir, "subscriber", "billing")
	if err != nil {
		t.Fatal(err)
	}
	start := witness.Now()
	c := make(chan int)
	subscriber := loop.Go(func(context.Context) {
		defer sub.Close()
		for n := range c {
			sub.Begin(topic, id(n), topic, "billing", 1)
			sub.End(topic, id(n), topic, "billing", nil)
			if topic == durable {
				sub.Ack(topic, id(n), topic, "billing", nil)
			}
		}
	})
	const batch = 10
	for n := 1; n <= overWire; n += batch {
		var numbers []int
		for i := n; i < n+batch; i++ {
			pub.Intent(topic, id(i), witness.Now())
			pub.Accept(topic, id(i))
			numbers = append(numbers, i)
		}
		if slices.Contains(numbers, planted) {
			numbers = w(numbers)
		}
		for _, x := range numbers {
			c <- x
		}
	}
	close(c)
	<-subscriber.Done()
	subscriber.StopAndWait()
	pub.Close()
	led, err := ReadLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	ev := &Evidence{
		Expect: []Expectation{{Topic: topic, Pattern: topic, Group: "billing", Durable: topic == durable}},
		Phases: []Phase{{"all", Steady, start}},
		End:    &EndState{},
		Finish: witness.Now(),
	}
	if topic == durable {
		ev.End.Stored = overWire
	}
	return Judge(led, ev, DefaultLimits())
}

const planted = 64

func TestATransportThatMisbehavesOnceIsNamed(t *testing.T) {
	for _, topic := range []string{live, durable} {
		for name, c := range map[string]struct {
			wire wire
			rule string
		}{
			"loses one":   {losing(planted), RuleLost},
			"doubles one": {doubling(planted), RuleDoubled},
			"swaps two":   {swapping(planted), RuleOrder},
		} {
			t.Run(name+" of "+topic, func(t *testing.T) {
				v := drive(t, topic, c.wire)
				mustBe(t, v, Broken)
				if len(v.Violations) != 1 || v.Violations[0].ID != id(planted) || v.Violations[0].Rule != c.rule {
					t.Errorf("got %v, want only %s of %s", first(named(v)), c.rule, id(planted))
				}
			})
		}
	}
}

func TestAnHonestTransportIsKept(t *testing.T) {
	for _, topic := range []string{live, durable} {
		v := drive(t, topic, honest)
		mustBe(t, v, Kept)
		if d := time.Duration(v.Rows[0].Delay); v.Rows[0].Promise != "live, steady" || d < 0 {
			t.Errorf("%+v", *v.Rows[0])
		}
	}
}
