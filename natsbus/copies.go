package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/tidings-go/tidings/adapter"
)

// Headers of an atomic batch.
const (
	hBatch       = "Nats-Batch-Id"
	hBatchPlace  = "Nats-Batch-Sequence"
	hBatchCommit = "Nats-Batch-Commit"
)

// fewCopies are stored one by one: a batch costs the server some milliseconds.
const fewCopies = 16

// storeAtOnce stores all copies or none, and returns the place of the last one; the
// others come right before it. 0: the server does not do that, or it is in doubt.
func (c *conn) storeAtOnce(ctx context.Context, to recipient, copies []*nats.Msg) (last uint64) {
	if len(copies) < fewCopies || !c.serverHas(2, 12) || c.allowBatches(ctx, to.stream) != nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	batch := nuid.Next()
	for i, m := range copies {
		m.Header[hBatch], m.Header[hBatchPlace] = []string{batch}, []string{strconv.Itoa(i + 1)}
		if i < len(copies)-1 {
			if err := c.nc.PublishMsg(m); err != nil {
				return 0
			}
			continue
		}
		m.Header[hBatchCommit] = []string{"1"}
		answer, err := c.nc.RequestMsgWithContext(ctx, m)
		if err != nil {
			return 0
		}
		var ack struct {
			Error    *jetstream.APIError `json:"error"`
			Sequence uint64              `json:"seq"`
			Count    int                 `json:"count"`
		}
		if err := json.Unmarshal(answer.Data, &ack); err != nil || ack.Error != nil || ack.Count != len(copies) {
			return 0
		}
		last = ack.Sequence
	}
	return last
}

// allowBatches has a stream take them.
func (c *conn) allowBatches(ctx context.Context, stream string) error {
	info, err := c.streamInfo(ctx, stream)
	if err != nil || info.Config.AllowAtomicPublish {
		return err
	}
	cfg := info.Config
	cfg.AllowAtomicPublish = true
	return c.api(ctx, "STREAM.UPDATE."+stream, func(ctx context.Context) error {
		_, err := c.js.UpdateStream(ctx, cfg)
		return err
	})
}

// storeSurely stores a copy, however often it takes: of one id the stream
// takes one. It does not leave the copy in doubt when ctx ends.
func (c *conn) storeSurely(ctx context.Context, to recipient, m *nats.Msg) (place uint64, err error) {
	for end := time.Now().Add(replayPatience); ; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		if err = c.link.wait(try); err == nil {
			place, err = c.storePrivate(try, to, m)
		}
		cancel()
		if err == nil || errCode(err) != 0 || errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, adapter.ErrClosed) || time.Now().After(end) {
			return place, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
