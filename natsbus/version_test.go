package natsbus

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

func TestServerTooOldToDelay(t *testing.T) {
	a, err := Open(t.Context(), testkit.Server(t).URL(), adapter.Config{App: "shop", Durable: []string{"order.>"}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c := a.(*conn)
	for _, v := range []struct {
		version []int
		has     bool
	}{{[]int{1, 99}, true}, {[]int{2, 0}, true}, {[]int{2, 12}, true}, {[]int{2, 99}, false}, {[]int{3, 0}, false},
		{[]int{2, 15, 2}, true}, {[]int{2, 15, 99}, false}, {[]int{2, 14, 99}, true}} {
		if got := c.serverHas(v.version...); got != v.has {
			t.Errorf("%s is at least %d: %v", c.nc.ConnectedServerVersion(), v.version, got)
		}
	}
	c.later.can.Store(false)
	if c.Caps().Delay {
		t.Error("Caps say that it can")
	}
	err = c.Publish(context.Background(), &adapter.Message{ID: "1", Topic: "order.due", NotBefore: time.Now().Add(time.Hour)}, adapter.Durable)
	if err == nil || !strings.Contains(err.Error(), "2.12") || !strings.Contains(err.Error(), "order.due") {
		t.Errorf("the error is %v", err)
	}
}
