package activity_test

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/internal/activity"
)

// Whatever is marked in several processes, each of which tells now and then, the
// gaps are those of all marks together.
func TestGapsOfSeveralProcesses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const processes = 3
		var marks [processes]activity.Marks
		var told [processes]int64
		var line activity.Timeline
		all := map[int64]bool{}
		first := rapid.Int64Range(0, 1<<35).Draw(t, "first") // ten years
		now := first
		for n := range told {
			told[n] = first
		}
		tell := func(n int) {
			if err := line.Add(marks[n].Since(told[n], now)); err != nil {
				t.Fatal(err)
			}
			told[n] = now // once more: the slot is not over
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			n := rapid.IntRange(0, processes-1).Draw(t, "process")
			now += rapid.Int64Range(0, 40).Draw(t, "passes")
			for n := range told {
				if now-told[n] > activity.Kept/2 {
					tell(n) // as often as it must
				}
			}
			if rapid.Bool().Draw(t, "marks") {
				marks[n].Mark(now)
				all[now] = true
			} else {
				tell(n)
			}
		}
		for n := range marks {
			tell(n)
		}
		from, to := rapid.Int64Range(first, now).Draw(t, "from"), rapid.Int64Range(first, now).Draw(t, "to")
		want, at, run := time.Duration(0), from, int64(0)
		for slot := from; slot <= to; slot++ {
			if run++; all[slot] {
				run = 0
			}
			if d := time.Duration(run) * activity.Slot; d > want {
				want, at = d, slot-run+1
			}
		}
		if gap, begins := line.LongestGap(from, to); gap != want || begins != at {
			t.Errorf("the longest gap of %d to %d is %v from %d on, want %v from %d on", from, to, gap, begins, want, at)
		}
		line.Forget(to + 64)
		if gap, _ := line.LongestGap(from, to); gap != time.Duration(max(to-from+1, 0))*activity.Slot {
			t.Errorf("after all was forgotten the gap is %v", gap)
		}
	})
}

func TestOldMarksAreForgotten(t *testing.T) {
	var m activity.Marks
	m.Mark(100)
	m.Mark(100 + activity.Kept) // in the same place
	m.Mark(100)                 // too late
	if first, bits := m.Since(0, 100+activity.Kept); first != 101 || bits != wantAt(activity.Kept-1) {
		t.Errorf("from %d on: %s", first, bits)
	}
	if first, bits := m.Since(0, 99+activity.Kept); first != 0 || bits != "" {
		t.Errorf("before the last: from %d on: %s", first, bits)
	}
}

// wantAt are the digits of one mark.
func wantAt(i int) string {
	b := make([]byte, i/4+1)
	for k := range b {
		b[k] = '0'
	}
	b[i/4] = "8421"[i%4]
	return string(b)
}

func TestMarksOfSeveralGoroutines(t *testing.T) {
	var m activity.Marks
	var marking sync.WaitGroup
	for g := range int64(4) {
		marking.Go(func() {
			for slot := g; slot < activity.Kept; slot += 4 {
				m.Mark(1<<35 + slot)
			}
		})
	}
	marking.Wait()
	var line activity.Timeline
	if err := line.Add(m.Since(1<<35, 1<<35+activity.Kept-1)); err != nil {
		t.Fatal(err)
	}
	if gap, at := line.LongestGap(1<<35, 1<<35+activity.Kept-1); gap != 0 {
		t.Errorf("slot %d was lost", at)
	}
}

func TestWhatIsNoTimeline(t *testing.T) {
	var line activity.Timeline
	for _, bad := range []struct {
		first int64
		bits  string
	}{{0, "xy"}, {-1, "80"}} {
		if err := line.Add(bad.first, bad.bits); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestAlignedSlotsAreThoseOfTheClock(t *testing.T) {
	activity.Align(int64(1000 * time.Hour))
	if now, least := activity.Now(), activity.SlotOf(int64(1000*time.Hour)); now < least || now > least+6000 {
		t.Errorf("slot %d, want %d or little more", now, least)
	}
}

func BenchmarkMark(b *testing.B) {
	var m activity.Marks
	for b.Loop() {
		m.Mark(activity.Now())
	}
}
