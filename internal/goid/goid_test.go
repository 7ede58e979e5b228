package goid

import (
	"sync"
	"testing"
)

func TestID(t *testing.T) {
	mine := ID()
	if mine == 0 || mine != ID() {
		t.Fatalf("ID is %d, then %d", mine, ID())
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if other := ID(); other == 0 || other == mine {
			t.Errorf("another goroutine has the id %d, mine is %d", other, mine)
		}
	})
	wg.Wait()
}
