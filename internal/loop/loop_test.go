package loop

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStopAndWait(t *testing.T) {
	for range 500 {
		l := Go(func(ctx context.Context) { <-ctx.Done() })
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(l.StopAndWait)
		}
		wg.Wait()
		if !l.Ended() {
			t.Fatal("StopAndWait returned before the goroutine had ended")
		}
	}
}

func TestWaitGivesUpWithItsContext(t *testing.T) {
	release := make(chan struct{})
	l := Go(func(context.Context) { <-release })
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Wait(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	if l.Ended() {
		t.Error("it has ended though it runs")
	}
	close(release)
	if err := l.Wait(context.Background()); err != nil {
		t.Errorf("Wait: %v", err)
	}
}
