package natsbus

import (
	"testing"

	"github.com/nats-io/nats.go"
)

// The server serves standing pulls in turn and says nothing of one that it has
// filled: none may be taken for outstanding once their sum has come, or a drain
// waits for an answer that nobody owes.
func TestStandingPullsAreCountedTogether(t *testing.T) {
	ended := func(pending string) *nats.Msg {
		return &nats.Msg{Header: nats.Header{"Status": {"408"}, "Nats-Pending-Messages": {pending}}}
	}
	two := func() *durable { return &durable{pulls: []pull{{"a", 10}, {"b", 5}}, want: 15} }

	d := two()
	for range 12 { // b is filled, in silence; a got 7
		d.unsent(1)
	}
	if len(d.pulls) == 0 || d.want != 3 {
		t.Errorf("3 may still come, not %d of %v", d.want, d.pulls)
	}
	d.endPull("a", ended("3"))
	if len(d.pulls) != 0 || d.want != 0 {
		t.Errorf("b was filled and a has ended, but %d of %v are waited for", d.want, d.pulls)
	}

	d = two()
	d.endPull("a", ended("10"))
	d.endPull("of an earlier connection", ended("4"))
	if len(d.pulls) != 1 || d.want != 5 {
		t.Errorf("only b stands, with 5; not %v with %d", d.pulls, d.want)
	}
}
