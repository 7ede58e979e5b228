package natsbus

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
)

// What lists of streams look like while some of their servers do not answer: after four
// seconds nats-server sends what it has. Only what leaves out a stream that may be there
// is no answer, or its subjects would be taken for free.
func TestAListThatLeavesOutAStreamIsNoAnswer(t *testing.T) {
	const shop = `{"config":{"name":"shop","subjects":["order.>"]}}`
	for _, c := range []struct {
		say, data string
		partial   bool
	}{
		{"all", `{"total":1,"streams":[` + shop + `]}`, false},
		{"none there", `{"total":0,"streams":[]}`, false},
		{"one whose leader does not answer", `{"total":2,"streams":[` + shop + `],"missing":["bank"]}`, true},
		{"one whose servers are all away, which is listed", `{"total":1,"streams":[` + shop + `],"missing":["shop"]}`, false},
		{"one that the server is too old for", `{"total":2,"streams":[` + shop + `],"missing":["bank"],"offline":{"bank":"requires API level 9"}}`, false},
	} {
		_, err := readAnswer[streamPage](&nats.Msg{Data: []byte(c.data)})
		if errors.Is(err, errPartial) != c.partial || undecided(err) != c.partial {
			t.Errorf("%s: %v", c.say, err)
		}
	}
	if _, err := readAnswer[streamPage](&nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10008}}`)}); !undecided(err) {
		t.Errorf("there is no leader yet: %v", err)
	}
	if _, err := readAnswer[streamPage](&nats.Msg{Data: []byte(`{"error":{"code":404,"err_code":10059}}`)}); err == nil || undecided(err) {
		t.Errorf("there is no such stream: %v", err)
	}
}
