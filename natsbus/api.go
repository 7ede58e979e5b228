package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const apiPrefix = "$JS.API."

// A refusal is a missing permission for a subject of JetStream's API. The server
// tells of it apart from the request, which would wait for its whole timeout.
type refusal struct{ subject string }

func (r *refusal) Error() string {
	return fmt.Sprintf("no permission to publish to %q: allow it for this user on the server", r.subject)
}

// apiPatience is after how long a change is asked for again. A cluster without a
// leader, as after its start, does not answer at all; whatever is asked may be
// asked twice.
const apiPatience = 2 * time.Second

// api runs f, which asks what op of JetStream's API, and says the way out when
// that fails. What only looks is asked by [inquire].
func (c *conn) api(ctx context.Context, op string, f func(context.Context) error) error {
	return c.mayBeRefused(ctx, op, func(ctx context.Context) error { return c.untilAnswered(ctx, f) })
}

// mayBeRefused ends f if there is no permission for op.
func (c *conn) mayBeRefused(ctx context.Context, op string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	key := &op
	c.mu.Lock()
	c.asking[key] = cancel
	c.mu.Unlock()
	err := f(ctx)
	c.mu.Lock()
	delete(c.asking, key)
	c.mu.Unlock()
	var r *refusal
	if errors.As(context.Cause(ctx), &r) {
		return r
	}
	return c.jsError(err)
}

func (c *conn) untilAnswered(ctx context.Context, f func(context.Context) error) error {
	for {
		if err := c.link.wait(ctx); err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, apiPatience)
		err := f(try)
		late := try.Err() != nil
		cancel()
		if err == nil || !late && !undecided(err) || ctx.Err() != nil {
			return err
		}
		if !late {
			select {
			case <-time.After(jitter(askEvery)):
			case <-ctx.Done():
				return err
			}
		}
	}
}

// refused ends the calls that have asked what this subject is for. api is false
// for subjects that are none of the API's; told, when a caller gets the error.
func (c *conn) refused(subject string) (api, told bool) {
	op, ok := strings.CutPrefix(subject, apiPrefix)
	if !ok {
		return false, false
	}
	c.mu.Lock()
	asking := maps.Clone(c.asking)
	c.mu.Unlock()
	for key, cancel := range asking {
		if op == *key || strings.HasPrefix(op, *key+".") {
			cancel(&refusal{subject})
			told = true
		}
	}
	return true, told
}

// request asks for what the jetstream package has no call, or one that hides
// part of the answer.
func (c *conn) request(ctx context.Context, op string, req, resp any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return c.api(ctx, op, func(ctx context.Context) error {
		m, err := c.nc.RequestWithContext(ctx, apiPrefix+op, body)
		if err != nil {
			return err
		}
		var failed struct {
			Error *jetstream.APIError `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &failed); err != nil {
			return fmt.Errorf("the answer to %s cannot be read: %w", op, err)
		}
		if failed.Error != nil {
			return failed.Error
		}
		return json.Unmarshal(m.Data, resp)
	})
}

// jsError says the way out of what JetStream answers.
func (c *conn) jsError(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("the server at %s has no JetStream for this account: enable it (tidings hub has it; nats-server -js), or declare no durable route: %w", c.addr.public, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("JetStream at %s does not answer: it may be starting, or this user may lack permission for $JS.API.>: %w", c.addr.public, err)
	}
	return err
}

func errCode(err error) int {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return int(api.ErrorCode)
	}
	return 0
}

func raced(err error) bool {
	return slices.Contains([]int{jsNoSubject, jsNameInUse}, errCode(err))
}

func noRoom(err error) bool {
	return slices.Contains([]int{jsInsufficient, jsNoStorage, jsNoMemory, jsStreamTooBig}, errCode(err))
}

// fewPeers: the cluster has not as many servers, or the server has no cluster.
func fewPeers(err error) bool {
	return slices.Contains([]int{jsNoPeers, jsNoReplicas}, errCode(err))
}
