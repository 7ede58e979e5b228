package natsbus_test

import (
	"flag"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings/adapter"
	"github.com/tidings-go/tidings/internal/testkit"
)

var clusterCosts = flag.Bool("cluster-costs", false, "measure what three copies cost, and print it")

// What three copies cost beside one, for docs/cluster.md:
//
//	go test ./natsbus -run ClusterCosts -cluster-costs -v
func TestClusterCosts(t *testing.T) {
	if !*clusterCosts {
		t.Skip("it measures, and tests nothing (-cluster-costs)")
	}
	alone := func(text string) string { before, _, _ := strings.Cut(text, "\ncluster {"); return before + "\n" }
	lazy := func(text string) string { return strings.Replace(text, "sync_interval: always", "", 1) }
	for _, k := range []struct {
		name   string
		edit   func(string) string
		copies int
	}{
		{"one node", alone, 1}, {"cluster, one copy", asShipped, 1}, {"cluster, three copies", asShipped, 3},
		{"one node, sync every two minutes", func(s string) string { return alone(lazy(s)) }, 1},
		{"cluster, three copies, sync every two minutes", lazy, 3},
	} {
		s := ship(t, k.edit)
		s.rest = strings.Replace(s.rest, "replicas=3", "replicas="+strconv.Itoa(k.copies), 1)
		where := s.url(0)
		if k.copies > 1 {
			where = s.url()
		}
		a := s.join(t, where, adapter.Config{Durable: []string{"order.>"}})
		var next atomic.Int64
		rate := func(callers, each int) float64 {
			began := time.Now()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for range each {
						m := order(strconv.FormatInt(next.Add(1), 10), 128)
						if err := a.Publish(t.Context(), m, adapter.Durable); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			return float64(callers*each) / time.Since(began).Seconds()
		}
		rate(64, 20) // warm
		one, many, crowd := rate(1, 500), rate(64, 150), rate(1024, 30)
		b := s.join(t, where, adapter.Config{App: "billing"})
		c, began := newClerk(), time.Now()
		subscribe(t, b, adapter.Spec{Pattern: "order.*", Group: "billing", Durable: true, Prefetch: func() int { return 1024 }, Deliver: c.take})
		testkit.Until(t, 5*patience, func() bool { return c.count() == int(next.Load()) })
		consumed := float64(next.Load()) / time.Since(began).Seconds()
		t.Logf("| %s | %.0f | %.0f | %.0f | %.0f |", k.name, one, many, crowd, consumed)
		for _, n := range s.nodes {
			n.kill()
		}
	}
}
