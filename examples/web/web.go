// Package web is a small web service whose logging, metrics and slow-query report
// are subscribers: the code that does the work only says what it does.
// docs/instrumenting.md walks through it; cmd/web runs it.
//
// Its handlers may be called concurrently.
package web

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/tidings-go/tidings"
)

// Request is what is known of one HTTP request; the status once it is answered.
type Request struct {
	Method, Path string
	Status       int
}

// Query is one question to the store.
type Query struct {
	Table string
	Key   int
	Found bool
}

// topics are the events of this service, on one bus. Payloads that are filled in on
// the way are pointers.
type topics struct {
	requests tidings.Topic[*Request]
	queries  tidings.Topic[*Query]
	viewed   tidings.Topic[Item]
}

func topicsOn(bus *tidings.Bus) topics {
	return topics{
		tidings.NewTopic[*Request]("http.request").On(bus),
		tidings.NewTopic[*Query]("db.query").On(bus),
		tidings.NewTopic[Item]("item.viewed").On(bus),
	}
}

// Item is what the service is about.
type Item struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

var errNotFound = errors.New("not found")

type service struct {
	topics
	items map[int]Item
}

// Handler serves GET /items/ID from a store in memory, and tells the bus about it.
func Handler(bus *tidings.Bus, items ...Item) http.Handler {
	s := &service{topicsOn(bus), map[int]Item{}}
	for _, it := range items {
		s.items[it.ID] = it
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", s.item)
	return s.instrumented(mux)
}

// instrumented makes an event of each request.
func (s *service) instrumented(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &Request{Method: r.Method, Path: r.URL.Path, Status: http.StatusOK}
		_ = s.requests.Instrument(r.Context(), p, func(ctx context.Context) error {
			defer func() {
				if v := recover(); v != nil {
					p.Status = http.StatusInternalServerError // before the event is made
					panic(v)
				}
			}()
			next.ServeHTTP(&statusWriter{w, p}, r.WithContext(ctx))
			return nil
		})
	})
}

// statusWriter notes the status.
type statusWriter struct {
	http.ResponseWriter
	p *Request
}

func (w *statusWriter) WriteHeader(status int) {
	w.p.Status = status
	w.ResponseWriter.WriteHeader(status)
}

func (s *service) item(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		http.Error(w, "the id is not a number", http.StatusBadRequest)
		return
	}
	it, err := s.find(r.Context(), id)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if err := s.viewed.Publish(r.Context(), it); err != nil {
		slog.WarnContext(r.Context(), "nobody will know", "err", err) // the visitor gets the item all the same
	}
	_ = json.NewEncoder(w).Encode(it) // the client has gone
}

// find asks the store.
func (s *service) find(ctx context.Context, id int) (it Item, err error) {
	q := &Query{Table: "items", Key: id}
	err = s.queries.Instrument(ctx, q, func(ctx context.Context) error {
		time.Sleep(time.Millisecond) // as far away as a database
		if it, q.Found = s.items[id]; !q.Found {
			return errNotFound
		}
		return nil
	})
	return it, err
}
