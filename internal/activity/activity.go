// Package activity notes in which 10 ms something happened, in each of several
// processes, and finds how long it happened in none.
//
// Slots are numbered from the start of CLOCK_MONOTONIC, once [Align] was called:
// then those of all processes of a machine have the same numbers.
package activity

import (
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// Slot is the time that is told apart.
const Slot = 10 * time.Millisecond

// Kept is how many slots [Marks] remember, some 5 s.
const Kept = words * perWord

const (
	words   = 16
	perWord = 32 // of 64 bits, the others say of which turn of the ring the word is
)

var (
	epoch  = time.Now()
	offset atomic.Int64 // between CLOCK_MONOTONIC and the time since epoch
)

// Align tells what CLOCK_MONOTONIC is now, in nanoseconds. The standard library
// does not. What was marked before has other numbers.
func Align(now int64) { offset.Store(now - int64(time.Since(epoch))) }

// Now is the number of the present slot. A clock that is before the process began,
// as that of a synctest bubble, stands at 0.
func Now() int64 { return SlotOf(max(int64(time.Since(epoch))+offset.Load(), 0)) }

// SlotOf is the number of the slot that a time in nanoseconds is in.
func SlotOf(ns int64) int64 { return ns / int64(Slot) }

// Marks are the slots of the last seconds in which something happened. The zero
// Marks are none. All methods may be called concurrently.
type Marks struct{ words [words]atomic.Uint64 }

// Mark notes a slot. Of a slot that is noted already it costs one load.
func (m *Marks) Mark(slot int64) {
	w := &m.words[slot/perWord%words]
	turn, bit := uint64(uint32(slot/perWord)), uint64(1)<<(slot%perWord)
	for {
		have := w.Load()
		want := have | bit
		switch ahead := int32(uint32(have>>perWord) - uint32(turn)); {
		case ahead > 0:
			return // it is too long ago to be remembered
		case ahead < 0:
			want = turn<<perWord | bit
		}
		if have == want || w.CompareAndSwap(have, want) {
			return
		}
	}
}

// Since are the slots from one on that were marked, up to and with now, as [Timeline.Add]
// takes them: empty if there are none. The present slot is not over: ask for it again.
func (m *Marks) Since(from, now int64) (first int64, bits string) {
	from = max(from, now-Kept+1, 0)
	if from > now {
		return 0, ""
	}
	text, some := make([]byte, (now-from)/8+1), false
	for slot := from; slot <= now; slot++ {
		w := m.words[slot/perWord%words].Load()
		if uint32(w>>perWord) == uint32(slot/perWord) && w&(1<<(slot%perWord)) != 0 {
			text[(slot-from)/8] |= 0x80 >> ((slot - from) % 8)
			some = true
		}
	}
	if !some {
		return 0, ""
	}
	return from, strings.TrimRight(hex.EncodeToString(text), "0")
}

// A Timeline is what several processes have marked. The zero Timeline is empty. It
// is for one goroutine.
type Timeline struct{ marked map[int64]uint64 } // 64 slots a word

// Add adds what [Marks.Since] has returned, in whatever process.
func (t *Timeline) Add(first int64, bits string) error {
	if first < 0 {
		return fmt.Errorf("activity: it begins with slot %d, which is before time", first)
	}
	if len(bits)%2 == 1 {
		bits += "0"
	}
	text, err := hex.DecodeString(bits)
	if err != nil {
		return fmt.Errorf("activity: slots from %d on: %w", first, err)
	}
	if t.marked == nil {
		t.marked = map[int64]uint64{}
	}
	for i, b := range text {
		for k := range 8 {
			if b&(0x80>>k) != 0 {
				slot := first + int64(8*i+k)
				t.marked[slot/64] |= 1 << (slot % 64)
			}
		}
	}
	return nil
}

// Forget drops what is before a slot, but for some of the last.
func (t *Timeline) Forget(before int64) {
	for word := range t.marked {
		if word < before/64 {
			delete(t.marked, word)
		}
	}
}

// LongestGap is the longest time between two slots, these included, in which none
// was marked, and the slot that it begins with. What lay between the two events
// around it is longer by less than two slots.
func (t *Timeline) LongestGap(from, to int64) (gap time.Duration, begins int64) {
	from = max(from, 0)
	begins, empty := from, from // empty: where the slots that are empty now begin
	for slot := from; slot <= to+1; {
		word, is := t.marked[slot/64], slot <= to
		switch {
		case is && word == 0:
			slot = min((slot/64+1)*64, to+1)
			continue
		case is && word&(1<<(slot%64)) == 0:
			slot++
			continue
		}
		if d := time.Duration(slot-empty) * Slot; d > gap {
			gap, begins = d, empty
		}
		slot++
		empty = slot
	}
	return gap, begins
}
