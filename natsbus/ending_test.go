package natsbus

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestEndingIsWaitedForNoLongerThanEachContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e ending
		boom, release := errors.New("boom"), make(chan struct{})
		results := make(chan error, 2)
		begin := func() { results <- e.do(context.Background(), func(context.Context) error { <-release; return boom }) }
		go begin()
		synctest.Wait()
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		if err := e.do(gone, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("a second caller whose context has ended got %v", err)
		}
		go begin()
		close(release)
		if a, b := <-results, <-results; a != boom || b != boom {
			t.Errorf("got %v and %v", a, b)
		}
	})
}
