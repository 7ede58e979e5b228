package natsbus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A holder is the group that has acknowledged least of a stream.
type holder struct {
	floor  uint64                  // everything up to it was acknowledged by every group, or is of no interest to it
	info   *jetstream.ConsumerInfo // nil: the stream has no group
	oldest time.Time               // of what it has not acknowledged; zero: nothing
}

func (h holder) say() string {
	if h.info == nil {
		return "no group subscribes to it: what is purged, a first one would miss"
	}
	waits := h.info.NumPending + uint64(h.info.NumAckPending)
	s := fmt.Sprintf("group %q (%s) has not acknowledged %d events of it", groupOf(h.info), patternOf(h.info), waits)
	if !h.oldest.IsZero() {
		s += fmt.Sprintf(", the oldest published %s", h.oldest.Format(time.RFC3339))
	}
	if h.info.NumWaiting == 0 {
		s += ", and asks for none"
	}
	return s
}

// groupOf is the group of a consumer; those that others have made have a name.
func groupOf(i *jetstream.ConsumerInfo) string {
	if g := i.Config.Metadata[metaGroup]; g != "" {
		return g
	}
	return i.Name
}

func patternOf(i *jetstream.ConsumerInfo) string {
	if p := i.Config.Metadata[metaPattern]; p != "" {
		return p
	}
	if f := subjectsOf(i); len(f) > 0 {
		return fmt.Sprint(f)
	}
	return ">"
}

func subjectsOf(i *jetstream.ConsumerInfo) []string {
	if i.Config.FilterSubject != "" {
		return []string{i.Config.FilterSubject}
	}
	return i.Config.FilterSubjects
}

// holder finds the durable consumer that has acknowledged least. The stream's
// state must be older than the consumers': what is stored meanwhile is then above
// the floor that is found.
func (c *conn) holder(ctx context.Context, info *jetstream.StreamInfo) (holder, error) {
	all, err := c.consumers(ctx, info.Config.Name)
	if err != nil {
		return holder{}, err
	}
	low := holder{floor: info.State.LastSeq}
	for _, i := range all {
		if i.Config.Durable == "" {
			continue // somebody looks; what is read once without a name is no group
		}
		h, err := c.floorOf(ctx, info, i)
		if err != nil {
			return holder{}, err
		}
		if low.info == nil || h.floor < low.floor {
			low = h
		}
	}
	if low.info == nil {
		low.floor = 0
	}
	return low, nil
}

// floorOf says up to where a group is done with a stream. Its acknowledgement
// floor is only moved by events of its own pattern: a group that gets few of them
// would hold up all the others. So the first event of its pattern above the floor
// is looked up; whatever comes before that is not for it.
func (c *conn) floorOf(ctx context.Context, stream *jetstream.StreamInfo, i *jetstream.ConsumerInfo) (holder, error) {
	h := holder{floor: stream.State.LastSeq, info: i}
	subjects := subjectsOf(i)
	if len(subjects) == 0 {
		subjects = []string{">"}
	}
	from := max(i.AckFloor.Stream+1, stream.State.FirstSeq)
	if from > stream.State.LastSeq {
		return h, nil
	}
	for _, subject := range subjects {
		seq, at, err := c.nextMessage(ctx, stream.Config.Name, subject, from)
		if err != nil {
			return h, err
		}
		if seq > 0 && seq <= h.floor {
			h.floor, h.oldest = seq-1, at
		}
	}
	return h, nil
}

// nextMessage finds the first message of a subject from a sequence on. It asks
// the stream's leader: the copies that answer a direct get may be behind.
func (c *conn) nextMessage(ctx context.Context, stream, subject string, from uint64) (seq uint64, at time.Time, err error) {
	req := struct {
		Seq  uint64 `json:"seq"`
		Next string `json:"next_by_subj"`
	}{from, subject}
	got, err := inquire[struct {
		Message struct {
			Seq  uint64    `json:"seq"`
			Time time.Time `json:"time"`
		} `json:"message"`
	}](ctx, c, "STREAM.MSG.GET."+stream, req)
	switch {
	case errCode(err) == jsNoMessage:
		return 0, at, nil
	case err != nil:
		return 0, at, err
	}
	return got.Message.Seq, got.Message.Time, nil
}
