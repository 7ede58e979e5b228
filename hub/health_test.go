package hub

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/testkit"
)

// ask returns status and body of a page.
func ask(t *testing.T, url string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// figure is the value of a metric, -1 if it is not there.
func figure(page, name string) float64 {
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		return -1
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return -1
	}
	return v
}

func TestHealthAndMetrics(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Health: "127.0.0.1:0", MaxStore: 2 << 30})
	if code, body := ask(t, h.HealthURL()+"/healthz"); code != http.StatusOK {
		t.Error("healthz:", code, body)
	}
	if code, body := ask(t, h.HealthURL()+"/readyz"); code != http.StatusOK || body != "ready\n" {
		t.Error("readyz:", code, body)
	}
	b := run(t, h.URL(), "shop", tidings.Options{Routes: durable("order.>")})
	held := make(chan struct{})
	defer close(held)
	if _, err := b.Subscribe(within(t), "order.>", func(ctx context.Context, _ tidings.Event) error {
		select {
		case <-held:
		case <-ctx.Done():
		}
		return nil
	}, &tidings.SubscribeOptions{Durable: true}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := b.Publish(within(t), "order.placed", 1); err != nil {
			t.Fatal(err)
		}
	}
	var page string
	testkit.Until(t, patience, func() bool {
		_, page = ask(t, h.HealthURL()+"/metrics")
		return figure(page, `tidings_hub_stream_messages{account="$G",stream="shop"}`) == 3 && figure(page, `tidings_hub_stream_pending{account="$G",stream="shop"}`) == 3
	})
	for name, want := range map[string]float64{
		"tidings_hub_ready": 1, "tidings_hub_connections": 1, "tidings_hub_jetstream_enabled": 1, "tidings_hub_slow_consumers_total": 0,
		"tidings_hub_jetstream_store_limit_bytes": 2 << 30, "tidings_hub_jetstream_memory_limit_bytes": DefaultMaxMemory,
		"tidings_hub_jetstream_streams": 1, "tidings_hub_jetstream_consumers": 1,
		`tidings_hub_stream_limit_bytes{account="$G",stream="shop"}`: 1 << 30,
	} {
		if got := figure(page, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"tidings_hub_in_messages_total", "tidings_hub_out_messages_total", "tidings_hub_in_bytes_total", "tidings_hub_out_bytes_total", "tidings_hub_connections_total",
		"tidings_hub_jetstream_store_bytes", "tidings_hub_disk_bytes", "tidings_hub_disk_free_bytes", `tidings_hub_stream_bytes{account="$G",stream="shop"}`} {
		if figure(page, name) <= 0 {
			t.Errorf("%s is %v", name, figure(page, name))
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if families, err := parser.TextToMetricFamilies(strings.NewReader(page)); err != nil || len(families) != len(metrics) {
		t.Errorf("Prometheus reads %d families: %v, of\n%s", len(families), err, page)
	}
	if !strings.Contains(page, `tidings_hub_consumer_unsettled{account="$G",stream="shop",consumer="shop-order`) || !strings.Contains(page, "tidings_hub_consumer_pending{") {
		t.Errorf("nothing of the consumer:\n%s", page)
	}
}

// JetStream that is off, for whatever reason, is seen.
func TestReadyzSeesThatJetStreamIsOff(t *testing.T) {
	h := mustStart(t, Options{Dir: t.TempDir(), Health: "127.0.0.1:0"})
	if err := h.srv.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool {
		code, body := ask(t, h.HealthURL()+"/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "JetStream is off")
	})
	_, page := ask(t, h.HealthURL()+"/metrics")
	if figure(page, "tidings_hub_ready") != 0 || figure(page, "tidings_hub_jetstream_enabled") != 0 {
		t.Errorf("the figures say all is well:\n%s", page)
	}
	if code, _ := ask(t, h.HealthURL()+"/healthz"); code != http.StatusOK {
		t.Error("healthz:", code)
	}
}

// Without its store a hub acknowledges nothing: it would write into files that nobody
// finds again.
func TestAStoreThatIsRemoved(t *testing.T) {
	dir := t.TempDir()
	var log logBuffer
	h := mustStart(t, Options{Dir: dir, Health: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	shop := run(t, h.URL(), "shop", tidings.Options{Routes: durable("order.>")})
	if err := shop.Publish(within(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(h.dir.store()); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, patience, func() bool { return strings.Contains(log.String(), "the store was removed") })
	testkit.Until(t, patience, func() bool { return !h.srv.JetStreamEnabled() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := shop.Publish(ctx, "order.placed", 2); err == nil {
		t.Error("an event was accepted that is nowhere")
	}
	if code, why := ask(t, h.HealthURL()+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(why, "restart the hub") {
		t.Errorf("readyz is %d: %s", code, why)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors in the log, want one:\n%s", n, log.String())
	}
	if _, err := h.Stop(within(t)); err != nil {
		t.Error(err)
	}
	again := mustStart(t, Options{Dir: dir})
	run(t, again.URL(), "shop", tidings.Options{Routes: durable("order.>")})
}
