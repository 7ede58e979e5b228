package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tidings-go/tidings"
)

// mix makes n wildcard patterns of three tokens as buses have them: 40 % a.*.c,
// 30 % a.b.>, 10 % *.b.c, 20 % a.b.*. No two are the same.
func mix(n int) []string {
	r := rand.New(rand.NewPCG(1, 2))
	words := max(10, n/4) // few patterns match the same topic
	word := func(place byte) string { return fmt.Sprintf("%c%d", place, r.IntN(words)) }
	var patterns []string
	for had := map[string]bool{}; len(patterns) < n; {
		var p string
		switch i := len(patterns) % 10; {
		case i < 4:
			p = word('a') + ".*." + word('c')
		case i < 7:
			p = word('a') + "." + word('b') + ".>"
		case i < 8:
			p = "*." + word('b') + "." + word('c')
		default:
			p = word('a') + "." + word('b') + ".*"
		}
		if !had[p] {
			had[p] = true
			patterns = append(patterns, p)
		}
	}
	return patterns
}

// concrete fills the wildcards of a pattern.
func concrete(pattern string, i int) string {
	out := ""
	for _, c := range pattern {
		if c == '*' || c == '>' {
			out += fmt.Sprintf("x%d", i)
		} else {
			out += string(c)
		}
	}
	return out
}

// among makes a candidate of publishing by name, to 100 topics in turn which
// one subscription matches each, of as many as subs says.
func among(k kind, subs int) candidate {
	label := fmt.Sprintf("%d subscriptions", subs)
	return candidate{label, k, func() (g *rig, err error) {
		b, err := newBus()
		if err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, b.Close())
			}
		}()
		o, patterns := newOrder(), mix(subs)
		if _, err := subscribeAll(b, patterns); err != nil {
			return nil, err
		}
		ctx := context.Background()
		var topics []string
		for i := 0; len(topics) < 100; i++ {
			if i == 1000 {
				return nil, fmt.Errorf("of %d topics only %d are matched by one subscription", i, len(topics))
			}
			name := concrete(patterns[(i*len(patterns)/100+i)%len(patterns)], i)
			before := o.seen
			if err := b.Publish(ctx, name, o); err != nil {
				return nil, err
			}
			if o.seen == before+1 {
				topics = append(topics, name)
			}
		}
		next := 0
		return &rig{close: b.Close, op: inline(o, 1, func(n int) error {
			for range n {
				if next++; next == len(topics) {
					next = 0
				}
				if err := b.Publish(ctx, topics[next], o); err != nil {
					return err
				}
			}
			return nil
		})}, nil
	}}
}

// timedAmong notes also how long it takes to subscribe and to close: a tenth,
// and all. Each subscription should cost the same in both.
func timedAmong(k kind, subs int) candidate {
	c := among(k, subs)
	build := c.build
	c.build = func() (*rig, error) {
		var notes []string
		var before float64
		for _, n := range []int{max(1, subs/10), subs} {
			subscribe, end, err := timeSubscribe(n)
			if err != nil {
				return nil, err
			}
			each := float64(subscribe.Nanoseconds()) / float64(n)
			note := fmt.Sprintf("%d Subscribe calls took %v, %.0f ns each", n, subscribe.Round(time.Microsecond), each)
			if before > 0 {
				note += fmt.Sprintf(", %.1fx (1x is linear)", each/before)
			}
			notes = append(notes, note+fmt.Sprintf("; Close took %v", end.Round(time.Microsecond)))
			before = each
		}
		g, err := build()
		if err == nil {
			g.notes = notes
		}
		return g, err
	}
	return c
}

func timeSubscribe(n int) (subscribe, end time.Duration, err error) {
	b, err := newBus()
	if err != nil {
		return 0, 0, err
	}
	patterns := mix(n)
	for i := range 100 { // topics that are known already must be found and told
		if err := b.Publish(context.Background(), concrete(patterns[i*len(patterns)/100], i), newOrder()); err != nil {
			return 0, 0, errors.Join(err, b.Close())
		}
	}
	subscribe, err = subscribeAll(b, patterns)
	start := time.Now()
	err = errors.Join(err, b.Close())
	return subscribe, time.Since(start), err
}

func subscribeAll(b *tidings.Bus, patterns []string) (time.Duration, error) {
	h := tidings.Handler(func(_ context.Context, e tidings.Event) error { handle(e.Payload().(*order)); return nil })
	start := time.Now()
	for _, p := range patterns {
		if _, err := b.Subscribe(context.Background(), p, h, inlineOptions); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}
