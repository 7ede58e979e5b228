package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// A reading says what to read of a stream, beside what its groups do.
type reading struct {
	subject string
	from    uint64    // a sequence,
	since   time.Time // or a time
	n       int       // at most; 0: only count
	headers bool      // no payloads
}

// originals are messages of a stream as they were read.
type originals struct {
	msgs  []jetstream.Msg
	seqs  []uint64
	first uint64   // sequence
	next  uint64   // after the last that was read
	left  uint64   // that come after those
	sizes []uint64 // what storing each once more takes, about
}

// upTo leaves out what comes after a sequence.
func (o *originals) upTo(end uint64) {
	i, _ := slices.BinarySearch(o.seqs, end+1)
	o.cut(i)
}

func (o *originals) cut(n int) { o.msgs, o.seqs, o.sizes = o.msgs[:n], o.seqs[:n], o.sizes[:n] }

// fit is how many of them a stream takes without going above a share of its
// limits.
func (o *originals) fit(info *jetstream.StreamInfo, share float64) int {
	after := *info
	for i, size := range o.sizes {
		after.State.Msgs++
		after.State.Bytes += size
		if _, used := nearestLimit(&after); used > share {
			return i
		}
	}
	return len(o.sizes)
}

// read reads messages by a consumer that lives as long as that. A single request
// that gets many ("batch" of a direct get) may be answered by a copy that is behind.
func (c *conn) read(ctx context.Context, stream string, a reading) (*originals, error) {
	cfg := jetstream.ConsumerConfig{
		Name: "tidings-read-" + nuid.Next(), FilterSubject: a.subject, AckPolicy: jetstream.AckNonePolicy, HeadersOnly: a.headers,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: a.from, InactiveThreshold: time.Minute, MemoryStorage: true, Replicas: 1,
	}
	if !a.since.IsZero() {
		at := a.since.UTC()
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &at
	}
	var consumer jetstream.Consumer
	err := c.api(ctx, "CONSUMER.CREATE."+stream, func(ctx context.Context) (err error) {
		consumer, err = c.js.CreateConsumer(ctx, stream, cfg)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", stream, err)
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiPatience)
		defer cancel()
		_ = c.js.DeleteConsumer(last, stream, cfg.Name) // else the server removes it, after a minute
	}()
	o := &originals{left: consumer.CachedInfo().NumPending}
	n := int(min(uint64(a.n), o.left))
	if n == 0 {
		return o, nil
	}
	fetching, stop := context.WithCancel(ctx)
	defer stop()
	if err := o.fetch(fetching, consumer, n); err != nil {
		return nil, fmt.Errorf("read stream %s: %w", stream, err)
	}
	o.first, o.next = o.seqs[0], o.seqs[len(o.seqs)-1]+1
	o.left -= min(o.left, uint64(len(o.msgs)))
	return o, nil
}

func (o *originals) fetch(ctx context.Context, consumer jetstream.Consumer, n int) error {
	batch, err := consumer.Fetch(n, jetstream.FetchContext(ctx))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if want := uint64(len(o.msgs)) + 1; meta.Sequence.Consumer != want {
			return fmt.Errorf("message %d came where %d should: the connection may have been lost; go on from there", meta.Sequence.Consumer, want)
		}
		o.msgs, o.seqs = append(o.msgs, m), append(o.seqs, meta.Sequence.Stream)
		o.sizes = append(o.sizes, uint64(wireSize(&nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})+copyOverhead))
		if meta.NumPending == 0 {
			break // what was counted before may be purged by now
		}
	}
	if err := batch.Error(); err != nil && len(o.msgs) == 0 {
		return err
	}
	if len(o.msgs) == 0 {
		return errors.New("nothing came")
	}
	return nil
}

// copyOverhead is what a copy has that its original has not: a longer subject,
// the mark, a longer message id.
const copyOverhead = 512
