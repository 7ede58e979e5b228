package hub

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// A metric is a figure of the hub's, with or without labels.
type metric struct {
	name, help, kind string
	labels           []string
}

func gauge(name, help string, labels ...string) metric {
	return metric{"tidings_hub_" + name, help, "gauge", labels}
}

func counter(name, help string) metric {
	return metric{"tidings_hub_" + name, help, "counter", nil}
}

var (
	mReady       = gauge("ready", "1 if /readyz says so, without nats-server's own check.")
	mDiskBytes   = gauge("disk_bytes", "Size of the disk that the store is on.")
	mDiskFree    = gauge("disk_free_bytes", "What is free of it.")
	mConnections = gauge("connections", "Clients that are connected.")
	mConnected   = counter("connections_total", "Clients that have connected.")
	mInMsgs      = counter("in_messages_total", "Messages from clients.")
	mOutMsgs     = counter("out_messages_total", "Messages to clients.")
	mInBytes     = counter("in_bytes_total", "Bytes of messages from clients.")
	mOutBytes    = counter("out_bytes_total", "Bytes of messages to clients.")
	mSlow        = counter("slow_consumers_total", "Clients that were cut off because they did not read.")
	mEnabled     = gauge("jetstream_enabled", "1 if durable events are accepted at all.")
	mStore       = gauge("jetstream_store_bytes", "What streams take of the disk.")
	mStoreMax    = gauge("jetstream_store_limit_bytes", "What they may take.")
	mMemory      = gauge("jetstream_memory_bytes", "What streams in memory take.")
	mMemoryMax   = gauge("jetstream_memory_limit_bytes", "What they may take.")
	mStreams     = gauge("jetstream_streams", "Streams.")
	mConsumers   = gauge("jetstream_consumers", "Consumers of all streams.")

	ofStream   = []string{"account", "stream"}
	ofConsumer = []string{"account", "stream", "consumer"}

	mStreamMsgs      = gauge("stream_messages", "Messages that a stream holds.", ofStream...)
	mStreamBytes     = gauge("stream_bytes", "What they take.", ofStream...)
	mStreamMax       = gauge("stream_limit_bytes", "What they may take; 0: there is no limit.", ofStream...)
	mStreamPending   = gauge("stream_pending", "Messages that wait for a durable group, over all of them.", ofStream...)
	mPending         = gauge("consumer_pending", "Messages that were not delivered yet.", ofConsumer...)
	mUnsettled       = gauge("consumer_unsettled", "Messages that were delivered and not settled.", ofConsumer...)
	mConsumerWaiting = gauge("consumer_waiting_pulls", "Requests for messages that wait; 0: nobody takes from it.", ofConsumer...)

	metrics = []metric{mReady, mDiskBytes, mDiskFree, mConnections, mConnected, mInMsgs, mOutMsgs, mInBytes, mOutBytes, mSlow, mEnabled,
		mStore, mStoreMax, mMemory, mMemoryMax, mStreams, mConsumers, mStreamMsgs, mStreamBytes, mStreamMax, mStreamPending, mPending, mUnsettled, mConsumerWaiting}
)

// A page has the values of metrics, by their names.
type page map[string]*bytes.Buffer

// escape is what the value of a label needs.
var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func (p page) set(m metric, v float64, labels ...string) {
	b := p[m.name]
	if b == nil {
		b = new(bytes.Buffer)
		p[m.name] = b
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
	}
	b.WriteString(m.name)
	for i, l := range m.labels {
		fmt.Fprintf(b, `%c%s="%s"`, "{,"[min(i, 1)], l, escape.Replace(labels[i]))
	}
	if len(m.labels) > 0 {
		b.WriteByte('}')
	}
	fmt.Fprintf(b, " %s\n", strconv.FormatFloat(v, 'g', -1, 64))
}

// metrics serves the figures in Prometheus' text format. It asks the server when it is
// asked.
func (h *Hub) metrics(w http.ResponseWriter, _ *http.Request) {
	p := page{}
	h.collect(p.set)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, m := range metrics {
		if b := p[m.name]; b != nil {
			_, _ = w.Write(b.Bytes()) // the client is gone otherwise
		}
	}
}

func (h *Hub) collect(set func(metric, float64, ...string)) {
	g := h.guard
	set(mReady, flag(len(g.reasons()) == 0))
	g.mu.Lock()
	d := g.disk
	g.mu.Unlock()
	set(mDiskBytes, float64(d.total))
	set(mDiskFree, float64(d.free))
	if v, err := h.srv.Varz(nil); err == nil {
		set(mConnections, float64(v.Connections))
		set(mConnected, float64(v.TotalConnections))
		set(mInMsgs, float64(v.InMsgs))
		set(mOutMsgs, float64(v.OutMsgs))
		set(mInBytes, float64(v.InBytes))
		set(mOutBytes, float64(v.OutBytes))
		set(mSlow, float64(v.SlowConsumers))
	}
	set(mEnabled, flag(h.srv.JetStreamEnabled()))
	if js, err := h.srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, Config: true}); err == nil && !js.Disabled {
		set(mStore, float64(js.Store))
		set(mStoreMax, float64(js.Config.MaxStore))
		set(mMemory, float64(js.Memory))
		set(mMemoryMax, float64(js.Config.MaxMemory))
		set(mStreams, float64(js.Streams))
		set(mConsumers, float64(js.Consumers))
		for _, a := range js.AccountDetails {
			for _, s := range a.Streams {
				collectStream(set, a.Name, &s)
			}
		}
	}
}

func collectStream(set func(metric, float64, ...string), account string, s *server.StreamDetail) {
	set(mStreamMsgs, float64(s.State.Msgs), account, s.Name)
	set(mStreamBytes, float64(s.State.Bytes), account, s.Name)
	if s.Config != nil {
		set(mStreamMax, float64(max(s.Config.MaxBytes, 0)), account, s.Name)
	}
	pending := uint64(0)
	for _, i := range s.Consumer {
		pending += i.NumPending + uint64(i.NumAckPending)
		set(mPending, float64(i.NumPending), account, s.Name, i.Name)
		set(mUnsettled, float64(i.NumAckPending), account, s.Name, i.Name)
		set(mConsumerWaiting, float64(i.NumWaiting), account, s.Name, i.Name)
	}
	set(mStreamPending, float64(pending), account, s.Name)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
