package natsbus

import (
	"slices"
	"strings"

	"github.com/tidings-go/tidings/internal/topic"
)

// Rights say what one user of a NATS server may do with Tidings. A hub makes them of
// its users file; for any other server they are to be had with [Rights.Permissions].
type Rights struct {
	// User is its name at the server: one token of a subject. Answers to its requests
	// come on _INBOX.User.>, which nobody else may read.
	User string
	// Inboxes are more tokens in the place of User: of an nkey user its public keys.
	Inboxes []string
	// Prefix is that of its applications' Options.
	Prefix string
	// Apps are the applications that run as this user. Their streams are theirs.
	Apps []string
	// Publish are the topics, or patterns of them, that it may publish, live and
	// durable.
	Publish []string
	// Subscribe are the patterns that it may subscribe to.
	Subscribe []Subscribing
	// FixedStreams: it may not make or change streams. They are made with
	// "tidings apply" by a user that may; see docs/decisions/036-users.md for why.
	FixedStreams bool
}

// Subscribing is a pattern and the groups that may have it. Live, a narrower pattern is
// covered too; a durable group has a place of its own for each pattern, and may have
// those that are named.
type Subscribing struct {
	Pattern string
	Groups  []string
}

// Permissions are subjects for a user of nats-server: what it may publish and subscribe
// to, where a second word is the name of a queue, and what of that it may not after
// all. It must be allowed to respond, too (allow_responses).
type Permissions struct {
	Publish, DenyPublish     []string
	Subscribe, DenySubscribe []string
}

// Permissions are what natsbus needs for these rights, and no more than that. others
// are the rights of the server's other users, whose durable groups are kept from
// whoever owns the stream that they read.
func (r Rights) Permissions(others ...Rights) Permissions {
	p := &permits{c: &conn{}, r: r}
	p.c.cfg.Prefix = r.Prefix
	p.inbox()
	p.look()
	p.publishing()
	p.subscribing()
	p.oneToken()
	if len(r.Publish) > 0 {
		p.keepOff(others)
	}
	return p.done()
}

// permits collects permissions.
type permits struct {
	c         *conn // that of a process of the user's; only its prefix is there
	r         Rights
	pub, deny []string
	sub, veil []string // what is veiled does not come
}

func (p *permits) done() Permissions {
	for _, list := range []*[]string{&p.pub, &p.deny, &p.sub, &p.veil} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return Permissions{Publish: p.pub, DenyPublish: p.deny, Subscribe: p.sub, DenySubscribe: p.veil}
}

// api allows requests of JetStream's API.
func (p *permits) api(ops ...string) {
	for _, op := range ops {
		p.pub = append(p.pub, apiPrefix+op)
	}
}

// inbox: answers come there. The members of a durable group look for each other there
// too, so it may also be published to.
func (p *permits) inbox() {
	for _, name := range append([]string{p.r.User}, p.r.Inboxes...) {
		p.sub = append(p.sub, inboxOf(name)+".>")
		p.pub = append(p.pub, inboxOf(name)+".>")
	}
}

// inboxOf is where the answers to a user's requests come.
func inboxOf(user string) string { return "_INBOX." + user }

// userInfoSubject is where the server tells a user its own rights, for tidings doctor.
const userInfoSubject = "$SYS.REQ.USER.INFO"

// look: what streams and groups there are, and how they do, what rights it has, and whether the server has
// this process's subscriptions, which shows those of others too. No event can be read by
// it.
func (p *permits) look() {
	p.pub = append(p.pub, interestSubject, userInfoSubject)
	p.api("INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.INFO.*", "CONSUMER.LIST.*", "CONSUMER.NAMES.*", "CONSUMER.INFO.*.*")
}

func (p *permits) publishing() {
	if len(p.r.Publish) == 0 {
		return
	}
	for _, t := range p.r.Publish {
		p.pub = append(p.pub, p.c.subject(t), markSubject(p.c.subject(t)))
	}
	for _, app := range p.r.Apps {
		stream, later := streamName(p.r.Prefix, app), laterName(p.r.Prefix, app)
		if !p.r.FixedStreams {
			p.api("STREAM.CREATE."+stream, "STREAM.UPDATE."+stream, "STREAM.CREATE."+later)
		}
		p.api("STREAM.PURGE."+stream, "STREAM.PURGE."+later, "STREAM.MSG.GET."+stream)
		for _, s := range []string{stream, later} { // who was in doubt reads what is stored
			p.api("CONSUMER.CREATE."+s+".>", "CONSUMER.DELETE."+s+".*", "CONSUMER.MSG.NEXT."+s+".*")
		}
		p.acks(later, "*")
		for _, t := range p.r.Publish {
			waits := laterRoot + later + ".at." + p.c.subject(t)
			if !strings.HasSuffix(t, ">") {
				waits += ".*" // the event's id
			}
			p.pub = append(p.pub, waits)
		}
	}
}

// acks allows to settle, in both of the forms that nats-server gives the subject.
func (p *permits) acks(stream, consumer string) {
	p.pub = append(p.pub, "$JS.ACK."+stream+"."+consumer+".>", "$JS.ACK.*.*."+stream+"."+consumer+".>")
}

func (p *permits) subscribing() {
	if len(p.r.Subscribe) == 0 {
		return
	}
	tally := reserved + ".tally.*"
	p.pub, p.sub = append(p.pub, tally), append(p.sub, tally)
	dead := p.c.deadStream()
	p.api("STREAM.PURGE." + dead)
	if !p.r.FixedStreams {
		p.api("STREAM.CREATE." + dead)
	}
	for _, s := range p.r.Subscribe {
		subject := p.c.subject(s.Pattern)
		p.sub = append(p.sub, subject, markSubject(subject))
		for _, g := range s.Groups {
			if !strings.HasPrefix(s.Pattern, "*") && !strings.HasPrefix(s.Pattern, ">") {
				p.sub = append(p.sub, subject+" "+queueName(g, s.Pattern))
			}
			p.durable(subject, consumerName(g, subject))
		}
	}
}

// durable allows to make one consumer, whatever stream has its subject, to read it,
// settle its events, and store its dead letters.
func (p *permits) durable(subject, consumer string) {
	p.api("CONSUMER.CREATE.*."+consumer+"."+subject, "CONSUMER.MSG.NEXT.*."+consumer)
	p.acks("*", consumer)
	for _, kind := range []string{"dead", "begun"} {
		p.pub = append(p.pub, strings.Join([]string{reserved, kind, p.c.scope(), "*", "*", "*", consumer}, "."))
	}
}

// oneToken: who may have order.* is let subscribe to order.>, since nats-server takes the
// last sign of that for a token (client.canSubscribe, 2.15.2). What is deeper is denied
// then, unless another pattern has a part of it.
func (p *permits) oneToken() {
	for _, s := range p.r.Subscribe {
		deeper := s.Pattern + ".>"
		if strings.HasSuffix(s.Pattern, "*") && !slices.ContainsFunc(p.r.Subscribe, func(o Subscribing) bool { return topic.Overlap(o.Pattern, deeper) }) {
			p.veil = append(p.veil, p.c.subject(deeper))
		}
	}
}

// keepOff refuses the consumers of others: who may make consumers on a stream of its
// own, of any name, could else take what waits for them.
func (p *permits) keepOff(others []Rights) {
	mine := p.r.consumers()
	for _, o := range others {
		for c := range o.consumers() {
			if mine[c] {
				continue
			}
			for _, op := range []string{"MSG.NEXT.*." + c, "DELETE.*." + c, "CREATE.*." + c, "CREATE.*." + c + ".>"} {
				p.deny = append(p.deny, apiPrefix+"CONSUMER."+op)
			}
		}
	}
}

// consumers are the names of its durable groups' consumers.
func (r Rights) consumers() map[string]bool {
	c := &conn{}
	c.cfg.Prefix = r.Prefix
	names := map[string]bool{}
	for _, s := range r.Subscribe {
		subject := c.subject(s.Pattern)
		for _, g := range s.Groups {
			names[consumerName(g, subject)] = true
		}
	}
	return names
}
