package natsbus

import (
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/tidings-go/tidings/adapter"
)

// spares are items of live events that nats.go has copied: an event would else
// cost three allocations more, and the collecting of them.
var spares = sync.Pool{New: func() any { return new(item) }}

// spareMax is how large a buffer may be that is kept.
const spareMax = 16 << 10

// publishLive hands a live event to the writer.
func (c *conn) publishLive(m *adapter.Message) error {
	it := spares.Get().(*item)
	c.addr.form.write(&it.own, it.buf, c.subject(m.Topic), m, adapter.Live)
	if c.addr.form == structured {
		it.buf = it.own.Data
	}
	if m.Numbered {
		it.run, it.number, _ = splitID(m.ID)
	}
	return c.acceptLive(it, m.Topic)
}

// sendLive hands a message that is written already to the writer. What has no id is no
// event, and not counted as one.
func (c *conn) sendLive(msg *nats.Msg, topic, id string) error {
	it := spares.Get().(*item)
	it.internal = id == ""
	it.run, it.number, _ = splitID(id)
	it.own = nats.Msg{Subject: msg.Subject, Reply: msg.Reply, Header: msg.Header, Data: msg.Data}
	return c.acceptLive(it, topic)
}

func (c *conn) acceptLive(it *item, topic string) error {
	it.msg, it.topic, it.class, it.size = &it.own, topic, adapter.Live, wireSize(&it.own)
	err := c.fits(it)
	if err == nil {
		err = c.w.acceptLive(it)
	}
	if err != nil {
		it.reuse()
	}
	return err
}

// reuse lets another live event have the item. Nobody may look at it any more.
func (it *item) reuse() {
	it.own, it.msg, it.run, it.internal = nats.Msg{}, nil, "", false
	if cap(it.buf) > spareMax {
		it.buf = nil
	}
	spares.Put(it)
}
