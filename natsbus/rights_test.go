package natsbus_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/natsbus"
)

// Who may nothing of a kind has no permission of that kind but to look.
func TestRightsAreNoWiderThanDeclared(t *testing.T) {
	for _, r := range []natsbus.Rights{
		{User: "u", Apps: []string{"a"}, Publish: []string{"order.placed"}},
		{User: "u", Apps: []string{"a"}, Subscribe: []natsbus.Subscribing{{Pattern: "order.*", Groups: []string{"g"}}}},
	} {
		p := r.Permissions()
		for _, s := range slices.Concat(p.Publish, p.Subscribe) {
			if s == ">" || strings.HasPrefix(s, "*") || s == "$JS.API.>" || s == "_INBOX.>" || strings.HasPrefix(s, "$JS.API.CONSUMER.MSG.NEXT.*.*") || strings.HasPrefix(s, "$JS.ACK.*.*.>") {
				t.Errorf("%+v allows %s", r, s)
			}
			if len(r.Publish) == 0 && strings.Contains(s, "STREAM.UPDATE") {
				t.Errorf("who only subscribes may %s", s)
			}
			if strings.HasPrefix(s, "order.") && !slices.Contains([]string{"order.placed", "order.*", "order.* g|order.*"}, s) {
				t.Errorf("%s was not declared", s)
			}
		}
	}
}
