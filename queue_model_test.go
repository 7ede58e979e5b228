package tidings

import (
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The queue does what a slice with a bound would do.
func TestQueueAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.IntRange(1, 20).Draw(t, "bound")
		q, next := newQueue(bound), 0
		var model []int
		closed := false
		mk := func() item {
			next++
			return item{event: Event{attempt: next}}
		}
		t.Repeat(map[string]func(*rapid.T){
			"offer": func(t *rapid.T) {
				it := mk()
				res, _ := q.offer(it)
				want := putOK
				switch {
				case closed:
					want = putClosed
				case len(model) == bound:
					want = putFull
				default:
					model = append(model, it.event.attempt)
				}
				if res != want {
					t.Fatalf("offer: %v, want %v", res, want)
				}
			},
			"replaceOldest": func(t *rapid.T) {
				it := mk()
				dropped, full, res := q.replaceOldest(it)
				if closed != (res == putClosed) {
					t.Fatalf("replaceOldest: %v on a queue closed %v", res, closed)
				}
				if closed {
					return
				}
				if full != (len(model) == bound) || (full && dropped.event.attempt != model[0]) {
					t.Fatalf("replaceOldest dropped %v %v of %v", dropped.event.attempt, full, model)
				}
				if full {
					model = model[1:]
				}
				model = append(model, it.event.attempt)
			},
			"take": func(t *rapid.T) {
				if len(model) == 0 && !closed {
					t.Skip("would wait")
				}
				it, ok := q.take()
				if ok != (len(model) > 0) || (ok && it.event.attempt != model[0]) {
					t.Fatalf("take: %v %v of %v", it.event.attempt, ok, model)
				}
				if ok {
					model = model[1:]
				}
			},
			"close": func(t *rapid.T) { q.close(); closed = true },
			"clear": func(t *rapid.T) {
				var got []int
				for _, it := range q.clear() {
					got = append(got, it.event.attempt)
				}
				if !slices.Equal(got, model) {
					t.Fatalf("clear: %v of %v", got, model)
				}
				model, closed = nil, true
			},
			"": func(t *rapid.T) {
				if q.len() != len(model) {
					t.Fatalf("len %d, want %d", q.len(), len(model))
				}
			},
		})
	})
}

func TestPutWaitObeysItsContext(t *testing.T) {
	q := newQueue(1)
	_, _ = q.offer(item{})
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if res := q.putWait(gone, item{}, 1<<40); res != putFull {
		t.Errorf("putWait: %v", res)
	}
}
