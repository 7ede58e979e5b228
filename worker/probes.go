//go:build unix

package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
)

// Probes answer Kubernetes, or whoever else asks over HTTP, how a worker is. The
// zero value can be used; give it to [Options.Probes]. Its methods may be called
// concurrently and at any time.
type Probes struct{ life atomic.Pointer[life] }

// Ready answers 200 from when [Run] says READY until it is told to stop, and 503
// before and after, with what it waits for.
func (p *Probes) Ready() http.Handler {
	return p.handler(func(l *life, _ *http.Request) error {
		if l.stage.Load() != stageServing {
			return errors.New(statusOf(l.stage.Load(), l.Bus.Debugger().Snapshot().Subscriptions))
		}
		return nil
	})
}

// Alive answers 200 as long as the worker is alive in the sense of the watchdog: the
// bus answers, [Options.Alive] returns nil, and no handler exceeds
// [Options.HandlerLimit]. If one of them does not return, neither does Alive: let the
// probe have a timeout. It is alive while it drains.
func (p *Probes) Alive() http.Handler {
	return p.handler(func(l *life, r *http.Request) error { return l.alive(r.Context()) })
}

// Health answers with the bus's [tidings.Health] as JSON, 200 if it is OK and 503 if not.
// It is for alarms: a broker that is away is no reason to restart a worker, or to send
// it no more requests.
func (p *Probes) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		l := p.life.Load()
		if l == nil {
			http.Error(w, "not running", http.StatusServiceUnavailable)
			return
		}
		h := l.Bus.Debugger().Health()
		w.Header().Set("Content-Type", "application/json")
		if !h.OK {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h) // the client is gone otherwise
	})
}

func (p *Probes) handler(ask func(*life, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l := p.life.Load()
		if l == nil {
			http.Error(w, "not running", http.StatusServiceUnavailable)
			return
		}
		if err := ask(l, r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}
