//go:build unix

package supervisor

import (
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/sdnotify"
)

// side makes a member of a deploy that reports s.
func side(isNew bool, s sdnotify.SubscriptionReport) *member {
	s.Pattern, s.Group, s.Durable = "order.*", "billing", true
	return &member{worker: &worker{release: &release{}, report: sdnotify.Report{Subscriptions: []sdnotify.SubscriptionReport{s}}}, isNew: isNew}
}

// A group may lag for a moment, but not for a third of the probation, nor at its end,
// and what waited before does not count.
func TestJudgeOfLag(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	for name, c := range map[string]struct {
		lags []uint64 // one each second
		over bool     // with the last
		want string
	}{
		"steady":               {[]uint64{500, 500, 500, 500, 500}, true, ""},
		"grows within bounds":  {[]uint64{500, 550, 600, 600}, true, ""},
		"a moment":             {[]uint64{500, 900, 900, 500, 900, 900, 500}, true, ""},
		"a third":              {[]uint64{500, 900, 900, 900, 900}, false, "900 events wait, where 500 waited at first, and 100 more are allowed"},
		"at the end":           {[]uint64{500, 500, 900}, true, "900 events wait"},
		"not known from above": {nil, true, ""},
	} {
		d := &deploy{DeployRequest: DeployRequest{Probation: 9 * time.Second, MaxLag: 100}, lag: map[subscription]uint64{}}
		got := d.judge(start, false)
		for i, lag := range c.lags {
			d.members = []*member{side(false, sdnotify.SubscriptionReport{Lag: lag, LagKnown: true}), side(true, sdnotify.SubscriptionReport{})}
			got = d.judge(at(time.Duration(i)*time.Second), c.over && i == len(c.lags)-1)
			if got != "" && i < len(c.lags)-1 {
				t.Errorf("%s: after %d s: %s", name, i, got)
			}
		}
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Chance does not take a deploy back, and what it cannot explain does.
func TestJudgeOfErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		old, new sdnotify.SubscriptionReport
		max      uint64
		bad      bool
	}{
		"none":                            {sdnotify.SubscriptionReport{Handled: 10}, sdnotify.SubscriptionReport{Handled: 10}, 0, false},
		"one where there was none":        {sdnotify.SubscriptionReport{Handled: 10}, sdnotify.SubscriptionReport{Handled: 10, Failed: 1}, 0, true},
		"one that is allowed":             {sdnotify.SubscriptionReport{Handled: 10}, sdnotify.SubscriptionReport{Handled: 10, Failed: 1}, 1, false},
		"as often, and chance":            {sdnotify.SubscriptionReport{Handled: 900, Failed: 100}, sdnotify.SubscriptionReport{Handled: 81, Failed: 19}, 0, false},
		"twice as often":                  {sdnotify.SubscriptionReport{Handled: 900, Failed: 100}, sdnotify.SubscriptionReport{Handled: 80, Failed: 20}, 0, true},
		"the old ones have taken nothing": {sdnotify.SubscriptionReport{}, sdnotify.SubscriptionReport{Failed: 1}, 0, true},
		"a drop":                          {sdnotify.SubscriptionReport{}, sdnotify.SubscriptionReport{Dropped: 1}, 0, true},
	} {
		d := &deploy{DeployRequest: DeployRequest{Probation: time.Second, MaxErrors: c.max}, lag: map[subscription]uint64{},
			members: []*member{side(false, c.old), side(true, c.new)}}
		if got := d.judge(time.Now(), true); (got != "") != c.bad {
			t.Errorf("%s: %q", name, got)
		}
	}
}
