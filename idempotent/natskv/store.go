package natskv

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings"
)

// ErrLeaseLost is the cause of a handler's cancelled context, and of its error,
// when its claim was not renewed in time: another process may handle the event.
// Raise Options.Lease if processes stand still for longer.
var ErrLeaseLost = errors.New("natskv: the lease was lost: another process may handle the event")

// Options of a store; nil and the zero value work.
type Options struct {
	// Bucket is made if it is not there. Default: "tidings-handled".
	Bucket string
	// Window is how long an event is known to be handled. It should be longer than
	// an event may wait for its group, and at least 1 s. Default: 72 hours.
	Window time.Duration
	// Lease is how long others wait for a process that was killed, at least 1 s.
	// The server counts in whole seconds. Default: 10 s.
	Lease time.Duration
	// Replicas of the bucket, if it is made here. Default: 1.
	Replicas int
	// Logger is told of events that were handled and could not be marked. Default:
	// slog.Default().
	Logger *slog.Logger
}

func (o *Options) withDefaults() (Options, error) {
	var v Options
	if o != nil {
		v = *o
	}
	if v.Bucket == "" {
		v.Bucket = "tidings-handled"
	}
	if v.Window == 0 {
		v.Window = 72 * time.Hour
	}
	if v.Lease == 0 {
		v.Lease = 10 * time.Second
	}
	if v.Replicas == 0 {
		v.Replicas = 1
	}
	if v.Logger == nil {
		v.Logger = slog.Default()
	}
	switch {
	case v.Window < time.Second:
		return v, fmt.Errorf("natskv: Options.Window is %v: the server keeps nothing for less than 1s", v.Window)
	case v.Lease < time.Second:
		return v, fmt.Errorf("natskv: Options.Lease is %v: the server keeps nothing for less than 1s", v.Lease)
	}
	return v, nil
}

// answer bounds one request to the bucket.
const answer = 5 * time.Second

// Store is a bucket of ids. All methods may be called concurrently, and inside
// handlers.
type Store struct {
	js       jetstream.JetStream
	kv       jetstream.KeyValue
	stream   jetstream.Stream // where the bucket keeps its keys
	o        Options
	me       string // who claims, for people who look
	unmarked atomic.Uint64
}

// Open finds or makes the bucket. It fails when JetStream does not answer, and
// when the server or an existing bucket cannot let single keys expire.
func Open(ctx context.Context, js jetstream.JetStream, o *Options) (*Store, error) {
	opts, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // only for people
	s := &Store{js: js, o: opts, me: fmt.Sprintf("%s/%d/%s", host, os.Getpid(), rand.Text()[:8])}
	s.kv, err = js.KeyValue(ctx, opts.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		s.kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: opts.Bucket, Description: "events that handlers have handled", Replicas: opts.Replicas,
			LimitMarkerTTL: time.Second,
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // by another process, just now
			s.kv, err = js.KeyValue(ctx, opts.Bucket)
		}
	}
	if errors.Is(err, jetstream.ErrLimitMarkerTTLNotSupported) {
		return nil, fmt.Errorf("natskv: bucket %s: the server is older than 2.11 and cannot let single keys expire: %w", opts.Bucket, err)
	}
	if err != nil {
		return nil, fmt.Errorf("natskv: bucket %s: %w", opts.Bucket, err)
	}
	status, err := s.kv.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("natskv: bucket %s: %w", opts.Bucket, err)
	}
	if status.LimitMarkerTTL() == 0 {
		return nil, fmt.Errorf("natskv: bucket %s does not let single keys expire: name another in Options.Bucket, or set its limit marker TTL", opts.Bucket)
	}
	if ttl := status.TTL(); ttl > 0 && ttl < max(opts.Window, opts.Lease) {
		return nil, fmt.Errorf("natskv: bucket %s forgets everything after %v, before Options.Window (%v) or Options.Lease (%v) has ended: take the TTL off the bucket", opts.Bucket, ttl, opts.Window, opts.Lease)
	}
	if s.stream, err = js.Stream(ctx, "KV_"+opts.Bucket); err != nil {
		return nil, fmt.Errorf("natskv: bucket %s: %w", opts.Bucket, err)
	}
	return s, nil
}

// Unmarked is how many events were handled by this process and could not be
// marked. They are handled again if they are delivered again.
func (s *Store) Unmarked() uint64 { return s.unmarked.Load() }

// Handler wraps a handler so that it runs once for each event of the group: see
// the package comment for what that means. While another process has the claim,
// the returned handler waits, as long as its context allows.
func (s *Store) Handler(group string, h tidings.Handler) tidings.Handler {
	return func(ctx context.Context, e tidings.Event) error {
		if group == "" || e.ID() == "" {
			return errors.New("natskv: the group or the id of the event is empty: give the group that the subscription has, and an id to events that you make")
		}
		c, err := s.claim(ctx, Key(group, e.ID()))
		if err != nil {
			return fmt.Errorf("natskv: claim %s for group %q: %w", e.ID(), group, err)
		}
		if c == nil {
			return nil // handled before
		}
		return c.run(ctx, h, e)
	}
}

// entry is what a key holds.
type entry struct {
	State string    `json:"state"` // stateClaimed or stateDone
	By    string    `json:"by"`
	At    time.Time `json:"at"`
}

const (
	stateClaimed = "claimed"
	stateDone    = "done"
)

// subject is where a key is in the stream.
func (s *Store) subject(key string) string { return "$KV." + s.o.Bucket + "." + key }

// write sets a key that is at revision last; 0 if it is not there.
func (s *Store) write(ctx context.Context, key string, e entry, ttl time.Duration, last uint64) (revision uint64, err error) {
	e.At = time.Now().UTC()
	data, err := json.Marshal(e)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	ack, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: s.subject(key), Data: data},
		jetstream.WithExpectLastSequencePerSubject(last), jetstream.WithMsgTTL(wholeSeconds(ttl)))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// wholeSeconds is what the server counts in; it rounds down.
func wholeSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// overtaken reports whether somebody else has written the key.
func overtaken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// claim takes the key, after waiting for another's claim to end. It returns nil
// when the event was handled.
func (s *Store) claim(ctx context.Context, key string) (*claim, error) {
	c := &claim{s: s, key: key, by: s.me + "/" + rand.Text()[:8]}
	wait := time.NewTicker(min(s.o.Lease/8, time.Second))
	defer wait.Stop()
	for last := uint64(0); ; { // most keys were never there
		revision, err := s.write(ctx, key, entry{State: stateClaimed, By: c.by}, s.o.Lease, last)
		if err == nil {
			c.revision = revision
			return c, nil
		}
		if !overtaken(err) {
			return nil, err
		}
		for {
			var e entry
			last, e, err = s.read(ctx, key)
			if err != nil {
				return nil, err
			}
			if e.State == stateDone {
				return nil, nil
			}
			if e.State == "" || e.By == c.by { // free, or ours: the answer was lost
				break
			}
			select {
			case <-wait.C:
			case <-ctx.Done():
				return nil, fmt.Errorf("claimed by %s, who has not finished: %w", e.By, context.Cause(ctx))
			}
		}
	}
}

// read returns what a key holds and the revision to overwrite. A key that was
// never there, was released, or whose lease has ended is free: its state is
// empty. An answer that is late, from a replica, does no harm: a write on its
// revision fails.
func (s *Store) read(ctx context.Context, key string) (revision uint64, e entry, err error) {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	m, err := s.stream.GetLastMsgForSubject(ctx, s.subject(key))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return 0, e, nil
	case err != nil:
		return 0, e, err
	case m.Header.Get("KV-Operation") != "" || m.Header.Get("Nats-Marker-Reason") != "":
		return m.Sequence, e, nil // what is left of a removed key
	}
	if err := json.Unmarshal(m.Data, &e); err != nil || (e.State != stateClaimed && e.State != stateDone) {
		return 0, e, fmt.Errorf("key %s of bucket %s was not written by this package: name another bucket in Options.Bucket", key, s.o.Bucket)
	}
	return m.Sequence, e, nil
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)

// Key is where a (group, event id) is in the bucket, for those who look or
// remove by hand: the two as they are, or their hashes when a key cannot hold
// them.
func Key(group, id string) string { return token(group) + "." + token(id) }

func token(s string) string {
	if plain.MatchString(s) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "=" + base64.RawURLEncoding.EncodeToString(sum[:])
}
