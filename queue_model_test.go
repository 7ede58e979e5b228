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
		q, next := newQueue(bound, nil), uint64(0)
		var model []uint64
		closed := false
		mk := func() item {
			next++
			return item{event: Event{num: next}}
		}
		t.Repeat(map[string]func(*rapid.T){
			"offer": func(t *rapid.T) {
				it := mk()
				res := q.offer(it.ctx, &it.event)
				want := putOK
				switch {
				case closed:
					want = putClosed
				case len(model) == bound:
					want = putFull
				default:
					model = append(model, it.event.num)
				}
				if res != want {
					t.Fatalf("offer: %v, want %v", res, want)
				}
			},
			"replaceOldest": func(t *rapid.T) {
				it := mk()
				dropped, full, res := q.replaceOldest(it.ctx, &it.event)
				if closed != (res == putClosed) {
					t.Fatalf("replaceOldest: %v on a queue closed %v", res, closed)
				}
				if closed {
					return
				}
				if full != (len(model) == bound) || (full && dropped.event.num != model[0]) {
					t.Fatalf("replaceOldest dropped %v %v of %v", dropped.event.num, full, model)
				}
				if full {
					model = model[1:]
				}
				model = append(model, it.event.num)
			},
			"take": func(t *rapid.T) {
				if len(model) == 0 && !closed {
					t.Skip("would wait")
				}
				w := &worker{limit: rapid.IntRange(1, 8).Draw(t, "limit"), alone: rapid.Bool().Draw(t, "alone")}
				if ok := q.take(w); ok != (len(model) > 0) || len(w.batch) > min(w.limit, len(model)) || (ok && len(w.batch) == 0) {
					t.Fatalf("take: %v %d of %v", ok, len(w.batch), model)
				}
				for i, it := range w.batch {
					if it.event.num != model[i] {
						t.Fatalf("take: %v as number %d of %v", it.event.num, i, model)
					}
				}
				model = model[len(w.batch):]
				if idle, _ := q.whenIdle(); w.busy && idle == closedChan {
					t.Fatal("idle with events in hand")
				}
				r := q.lock()
				q.release(r, w)
				r.mu.Unlock()
				if idle, _ := q.whenIdle(); (idle == closedChan) != (len(model) == 0) {
					t.Fatalf("idle %v with %v", idle == closedChan, model)
				}
			},
			"close": func(t *rapid.T) { q.close(); closed = true },
			"clear": func(t *rapid.T) {
				var got []uint64
				for _, it := range q.clear() {
					got = append(got, it.event.num)
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
	q := newQueue(1, nil)
	_ = q.offer(context.Background(), &Event{})
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if res := q.putWait(gone, &Event{}, 1<<40); res != putFull {
		t.Errorf("putWait: %v", res)
	}
}
