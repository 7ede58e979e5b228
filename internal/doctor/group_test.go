//go:build unix

package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/natsbus"
)

// Each state of a durable group has its verdict, and a way out that names it.
func TestGroups(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*natsbus.GroupState, *jetstream.ConsumerInfo)
		want   Verdict
		found  string
		do     string
	}{
		"well":    {func(*natsbus.GroupState, *jetstream.ConsumerInfo) {}, OK, "pulling, 0 wait, 0 unsettled, ack wait 5s", ""},
		"paused":  {func(_ *natsbus.GroupState, i *jetstream.ConsumerInfo) { i.Paused, i.PauseRemaining = true, time.Hour }, Fail, "paused for 1h0m0s more", "nats consumer resume shop c"},
		"no acks": {func(_ *natsbus.GroupState, i *jetstream.ConsumerInfo) { i.Config.AckPolicy = jetstream.AckNonePolicy }, Fail, "ack policy", "nats consumer rm shop c"},
		"orphan":  {func(g *natsbus.GroupState, _ *jetstream.ConsumerInfo) { g.Orphan = true }, Warn, "an orphan", "tidings streams forget billing 'order.>'"},
		"full":    {func(_ *natsbus.GroupState, i *jetstream.ConsumerInfo) { i.NumAckPending = 10 }, Warn, "as it may have (10)", "tidings status"},
		"stuck": {func(g *natsbus.GroupState, _ *jetstream.ConsumerInfo) {
			g.Unsettled, g.LastActive = 1, time.Now().Add(-time.Minute)
		}, Warn, "nothing was settled", "hang"},
		"not stuck": {func(g *natsbus.GroupState, _ *jetstream.ConsumerInfo) {
			g.Unsettled, g.LastActive = 1, time.Now().Add(-20*time.Second)
		}, OK, "1 unsettled", ""},
		"away":    {func(g *natsbus.GroupState, _ *jetstream.ConsumerInfo) { g.State, g.Pending = natsbus.GroupAway, 3 }, Warn, "nobody takes them", "start its app"},
		"at ease": {func(g *natsbus.GroupState, _ *jetstream.ConsumerInfo) { g.State = natsbus.GroupAway }, OK, "away", ""},
	} {
		g := natsbus.GroupState{Stream: "shop", Consumer: "c", Group: "billing", Pattern: "order.>", State: natsbus.GroupPulling, LastActive: time.Now()}
		i := &jetstream.ConsumerInfo{Config: jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 10}}
		c.change(&g, i)
		e := &exam{r: &Report{Facts: map[string]string{}}}
		e.group("group", g, i)
		if got := e.r.Checks[0]; got.Verdict != c.want || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Do, c.do) || (got.Do == "") != (c.want == OK) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A stream whose copies are not all there is known by the one that is not.
func TestCopiesThatLag(t *testing.T) {
	for want, c := range map[string]*jetstream.ClusterInfo{
		"":                      nil,
		"it has no leader":      {},
		"the copy on b is away": {Leader: "a", Replicas: []*jetstream.PeerInfo{{Name: "b", Offline: true}}},
		"the copy on b is behind or away: 7 events missing, last heard of 2s ago": {Leader: "a",
			Replicas: []*jetstream.PeerInfo{{Name: "c", Current: true}, {Name: "b", Lag: 7, Active: 2 * time.Second}}},
	} {
		if got := lagging(c); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
