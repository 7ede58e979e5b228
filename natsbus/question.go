package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// askEvery is how often a question is repeated that nobody has answered. As often a
// standing pull asks.
const askEvery = 500 * time.Millisecond

// inquire asks JetStream's API what changes nothing, until it is answered. A node that dies
// takes questions along, and while there is no leader they are dropped: of that nobody
// tells who waits. All are asked with one and the same reply subject, and the first answer
// to any of them is taken, so that a server which needs longer than the pause is not
// asked in vain.
func inquire[T any](ctx context.Context, c *conn, op string, question any) (answer *T, err error) {
	var body []byte
	if question != nil {
		if body, err = json.Marshal(question); err != nil {
			return nil, err
		}
	}
	err = c.mayBeRefused(ctx, op, func(ctx context.Context) error {
		answer, err = untilTold[T](ctx, c, apiPrefix+op, body)
		return err
	})
	return answer, err
}

func untilTold[T any](ctx context.Context, c *conn, subject string, body []byte) (*T, error) {
	answers := make(chan *nats.Msg, 16)
	token := c.mux.expect(func(m *nats.Msg) {
		select {
		case answers <- m:
		default: // of more than one it makes no difference
		}
	})
	defer c.mux.forget(token)
	var said error // what was no answer
	for {
		if err := c.link.wait(ctx); err != nil {
			return nil, errors.Join(said, err)
		}
		_, _, changed := c.link.state()
		_ = c.nc.PublishRequest(subject, c.mux.subject(token), body) // an error: the connection is down
		for pause := time.After(jitter(askEvery)); pause != nil; {
			select {
			case m := <-answers:
				answer, err := readAnswer[T](m)
				if !undecided(err) {
					return answer, err
				}
				said = err
			case <-changed:
				pause = nil // on a new connection it is asked at once
			case <-pause:
				pause = nil
			case <-ctx.Done():
				return nil, errors.Join(said, ctx.Err())
			}
		}
	}
}

// errPartial: an answer for which the server would have needed others that did not
// answer it.
var errPartial = errors.New("JetStream has told only a part")

// undecided reports whether another answer is to be waited for: an election is on, as a
// rule.
func undecided(err error) bool { return errors.Is(err, errPartial) || errCode(err) == jsUnavailable }

func readAnswer[T any](m *nats.Msg) (*T, error) {
	if noResponders(m) {
		return nil, nats.ErrNoResponders
	}
	var head struct {
		Error *jetstream.APIError `json:"error"`
	}
	answer := new(T)
	if err := errors.Join(json.Unmarshal(m.Data, &head), json.Unmarshal(m.Data, answer)); err != nil {
		return nil, fmt.Errorf("the answer of JetStream cannot be read: %w", err)
	}
	if head.Error != nil {
		return nil, head.Error
	}
	if p, ok := any(answer).(*streamPage); ok {
		return answer, p.partial()
	}
	return answer, nil
}

// A streamPage is a part of the list of streams.
type streamPage struct {
	Total   int                     `json:"total"`
	Streams []*jetstream.StreamInfo `json:"streams"`
	Missing []string                `json:"missing"`
	Offline map[string]string       `json:"offline"` // which this server cannot run, and why
}

// partial is an error if the leader of a stream did not answer the server that lists: it
// waits for four seconds, and lists the others. A stream whose servers are all away is
// missing, too, and in the list as it was.
func (p *streamPage) partial() error {
	unheard := slices.DeleteFunc(slices.Clone(p.Missing), func(name string) bool {
		_, offline := p.Offline[name]
		return offline || slices.ContainsFunc(p.Streams, func(s *jetstream.StreamInfo) bool { return s.Config.Name == name })
	})
	if len(unheard) == 0 {
		return nil
	}
	return fmt.Errorf("%w: nothing of stream %s", errPartial, strings.Join(unheard, ", "))
}
