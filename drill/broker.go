package drill

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// broker is what the drill asks the hub itself.
type broker struct {
	url      string
	monitors []string // of each node
}

// clients counts the connected clients that have subscribed to something.
func (b broker) clients() int {
	return b.connected(func(name string) bool { return name != "tidings drill" })
}

// connected counts those of them with such a name.
func (b broker) connected(such func(name string) bool) (n int) {
	for _, m := range b.monitors {
		n += connected(m, such)
	}
	return n
}

func connected(monitor string, such func(name string) bool) int {
	c := http.Client{Timeout: time.Second}
	r, err := c.Get(monitor + "/connz?subs=1&limit=1000")
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	var z struct {
		Connections []struct {
			Name string `json:"name"`
			Subs int    `json:"subscriptions"`
		} `json:"connections"`
	}
	if json.NewDecoder(r.Body).Decode(&z) != nil {
		return 0
	}
	n := 0
	for _, c := range z.Connections {
		if c.Subs > 0 && such(c.Name) {
			n++
		}
	}
	return n
}

// state looks at the streams that hold the topics.
func (b broker) state(ctx context.Context, topics []string) (StreamState, EndState, error) {
	var s StreamState
	var end EndState
	err := b.with(func(js jetstream.JetStream) error {
		for _, topic := range topics {
			if err := look(ctx, js, topic, &s, &end); err != nil {
				return err
			}
		}
		return nil
	})
	return s, end, err
}

// connect makes a connection of the drill's own.
func (b broker) connect(o ...nats.Option) (*nats.Conn, error) {
	raw, query, _ := strings.Cut(b.url, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(q.Get("token-file"))
	if err != nil {
		return nil, err
	}
	return nats.Connect(raw, append(o, nats.Token(strings.TrimSpace(string(token))), nats.Name("tidings drill"))...)
}

// with asks the hub's JetStream something.
func (b broker) with(ask func(jetstream.JetStream) error) error {
	nc, err := b.connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return ask(js)
}

// look adds what the stream of a topic holds.
func look(ctx context.Context, js jetstream.JetStream, topic string, s *StreamState, end *EndState) error {
	name, err := js.StreamNameBySubject(ctx, topic)
	if err != nil {
		return err
	}
	st, err := js.Stream(ctx, name)
	if err != nil {
		return err
	}
	info, err := st.Info(ctx, jetstream.WithSubjectFilter(topic))
	if err != nil {
		return err
	}
	*s = StreamState{Name: name, Created: info.Created, LastSeq: info.State.LastSeq}
	end.Stored += info.State.Subjects[topic]
	cons := st.ListConsumers(ctx)
	for c := range cons.Info() {
		end.Pending += c.NumPending
		end.AckPending += uint64(c.NumAckPending)
		end.AckWait = max(end.AckWait, ms(c.Config.AckWait))
	}
	return cons.Err()
}
