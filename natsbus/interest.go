package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// A server has interest in what somebody subscribes to. Which subscriptions it has of
// a connection it tells whoever asks on this subject, for his own account.
const (
	interestSubject = "$SYS.REQ.SERVER.PING.CONNZ"
	interestWithin  = 2 * time.Second
	interestStrikes = 2 // questions without an answer until the connection is made anew
	// interestEach is added for each connection of the account, at which the server looks.
	interestEach = 10 * time.Millisecond
)

type (
	interestQuestion struct {
		CID    uint64 `json:"cid"`
		Detail bool   `json:"subscriptions_detail"`
		Server string `json:"server_name"`
		Exact  bool   `json:"exact_match"`
	}
	interestAnswer struct {
		Data struct {
			Total int `json:"total"` // connections of the account
			Conns []struct {
				CID  uint64       `json:"cid"`
				Subs []interested `json:"subscriptions_list_detail"`
			} `json:"connections"`
		} `json:"data"`
	}
	interested struct {
		Subject string `json:"subject"`
		Queue   string `json:"qgroup"`
	}
)

// errMoved: the answer is about a connection that is no more.
var errMoved = errors.New("connected anew meanwhile")

// errUntold: the server does not answer that.
var errUntold = errors.New("the server does not tell")

// watchInterest compares the subscriptions that the server has with ours, as soon as a
// connection is there and every now and then: one that is alive and deaf looks
// like one to which nothing is sent. Question and answer go the way of every event, so
// that a connection which is itself deaf is found too. It returns when the connection
// changes.
func (c *conn) watchInterest(ctx context.Context, every time.Duration, changed <-chan struct{}) {
	answered, strikes := false, 0
	answers := false // nats.go's own subscription to answers was there
	wait := time.Duration(0)
	if every == 0 {
		wait = never
	}
	for unchanged(ctx, changed, wait) {
		theirs, total, err := c.checkInterest(ctx)
		wait = max(every, time.Duration(total)*interestEach)
		wait += rand.N(wait/4 + 1) // so that a fleet does not ask at once
		had := answers
		answers = slices.Contains(theirs, interested{Subject: c.answers()})
		switch {
		case err == nil && had && !answers:
			c.anew(errors.New("the server has lost the subscription to answers of JetStream"))
			return
		case err == nil:
			answered, strikes = true, 0
		case errors.Is(err, errUntold):
			c.log.Info("natsbus: what the server has lost of this process's subscriptions cannot be found: for that, allow publishing to this subject", "subject", interestSubject, "cause", err)
			wait = never
		case answered && c.link.isUp() && ctx.Err() == nil:
			if strikes++; strikes >= interestStrikes {
				c.anew(fmt.Errorf("nothing comes back: %w", err))
				return
			}
		}
	}
}

// anew ends a connection that is up and deaf.
func (c *conn) anew(cause error) {
	c.stalls.Add(1)
	c.log.Warn("natsbus: the connection is deaf, although it is up; connecting anew", "url", c.addr.public, "cause", cause)
	_ = c.nc.ForceReconnect() // an error says that it is closed
}

// answers is the subject to which nats.go itself subscribes when it first asks something.
func (c *conn) answers() string {
	inbox := c.nc.NewRespInbox()
	return inbox[:strings.LastIndexByte(inbox, '.')+1] + "*"
}

// checkInterest asks once, and returns what the server has, and of how many connections.
// What is deaf is subscribed to anew.
func (c *conn) checkInterest(ctx context.Context) (theirs []interested, total int, err error) {
	if broken(mutantNotResubscribed) {
		return nil, 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, interestWithin)
	defer cancel()
	dials := c.dials.Load()
	ours := map[member][]*nats.Subscription{} // before it is asked, so that the answer is no older
	for _, m := range c.members() {
		ours[m] = m.listens()
	}
	theirs, total, err = c.askInterest(ctx)
	if err == nil && c.dials.Load() != dials {
		err = errMoved
	}
	if err != nil {
		return nil, total, err
	}
	for m, subs := range ours {
		for _, sub := range subs {
			if slices.Contains(theirs, interested{sub.Subject, sub.Queue}) || !slices.Contains(m.listens(), sub) {
				continue // it is there, or has ended meanwhile
			}
			c.stalls.Add(1)
			c.log.Warn("natsbus: the server has lost a subscription of this process, which was deaf; subscribing anew",
				"subject", sub.Subject, "queue", sub.Queue)
			m.revive(sub)
		}
	}
	return theirs, total, nil
}

// askInterest returns the subscriptions of this connection that its server has, and how
// many connections the account has.
func (c *conn) askInterest(ctx context.Context) ([]interested, int, error) {
	cid, err := c.nc.GetClientID()
	if err != nil {
		return nil, 0, err
	}
	q, err := json.Marshal(interestQuestion{CID: cid, Detail: true, Server: c.nc.ConnectedServerName(), Exact: true})
	if err != nil {
		return nil, 0, err
	}
	answers := make(chan *nats.Msg, 1)
	token := c.mux.expect(func(m *nats.Msg) {
		select {
		case answers <- m:
		default: // of a server with the same name
		}
	})
	defer c.mux.forget(token)
	if err := c.nc.PublishRequest(interestSubject, c.mux.subject(token), q); err != nil {
		return nil, 0, err
	}
	select {
	case m := <-answers:
		return readInterest(m, cid)
	case <-c.untold: // no permission
		return nil, 0, errUntold
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
}

func readInterest(m *nats.Msg, cid uint64) (subs []interested, total int, err error) {
	if noResponders(m) {
		return nil, 0, errUntold
	}
	var a interestAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errUntold, err)
	}
	if len(a.Data.Conns) != 1 || a.Data.Conns[0].CID != cid {
		return nil, 0, fmt.Errorf("%w: %.200q", errUntold, m.Data)
	}
	return a.Data.Conns[0].Subs, a.Data.Total, nil
}

// listens implements [member].
func (l *live) listens() []*nats.Subscription {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving || !l.there {
		return nil
	}
	return append(slices.Clone(l.aside), l.sub)
}

// revive implements [member]. The new one is there before the old one ends, of which
// nothing that has come is lost.
func (l *live) revive(old *nats.Subscription) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving {
		return
	}
	var err error
	if i := slices.Index(l.aside, old); i >= 0 {
		l.aside[i], err = l.c.nc.Subscribe(old.Subject, l.holes.subjects(l.pending)[old.Subject])
	} else if l.sub == old {
		err = l.subscribe()
	}
	if err != nil {
		return // the connection is closed: nobody waits for anything
	}
	_ = old.Drain() // the server does not know it
}

// listens implements [member].
func (d *durable) listens() []*nats.Subscription {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return nil
	}
	return slices.DeleteFunc([]*nats.Subscription{d.sub, d.member.sub}, func(s *nats.Subscription) bool { return !s.IsValid() })
}

// revive implements [member].
func (d *durable) revive(old *nats.Subscription) {
	d.post(func() {
		switch {
		case !old.IsValid():
		case d.subscription() == old:
			d.rebuild()
		default:
			d.unlisten()
			d.listen()
		}
	})
}
