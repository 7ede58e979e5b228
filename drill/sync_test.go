package drill

import (
	"slices"
	"strings"
	"testing"
)

// The trace must have what publishers were told of, and nothing of it too early.
func TestSynced(t *testing.T) {
	for name, c := range map[string]struct {
		synced Synced
		result Result
		named  []string
		void   string
	}{
		"all of it":    {Synced{Acks: 1e6, Messages: 1e6, Syncs: 1e6}, Kept, nil, ""},
		"one too soon": {Synced{Messages: 1e6, Early: []string{"message 7"}}, Broken, []string{violation("acknowledged = on the disk", RuleUnsynced, 0, "", "", 0)}, ""},
		"a short one":  {Synced{Messages: 1}, Void, nil, "the trace has acknowledgements of 1 messages"},
	} {
		t.Run(name, func(t *testing.T) {
			r := soundRun()
			r.ev.Synced = &c.synced
			v := r.judge()
			mustBe(t, v, c.result)
			if got := named(v); !slices.Equal(got, c.named) {
				t.Errorf("named %v, want %v", got, c.named)
			}
			if !strings.Contains(strings.Join(v.Void, "; "), c.void) {
				t.Errorf("void: %q", v.Void)
			}
		})
	}
}
