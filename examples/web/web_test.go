package web_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/web"
	"github.com/tidings-go/tidings/tidingstest"
)

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestWhatTheServiceTells(t *testing.T) {
	bus := tidingstest.New(t)
	var log bytes.Buffer
	if err := web.Log(t.Context(), bus.Bus, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	metrics, err := web.Measure(t.Context(), bus.Bus)
	if err != nil {
		t.Fatal(err)
	}
	rec := bus.Record(">")
	srv := httptest.NewServer(web.Handler(bus.Bus, web.Item{ID: 1, Name: "a lamp"}))
	defer srv.Close()

	if status, body := get(t, srv.URL+"/items/1"); status != 200 || !strings.Contains(body, "a lamp") {
		t.Errorf("item 1: %d %s", status, body)
	}
	rec.ExpectExactly(
		tidingstest.Event("db.query", &web.Query{Table: "items", Key: 1, Found: true}),
		tidingstest.Event("item.viewed", web.Item{ID: 1, Name: "a lamp"}),
		tidingstest.Event("http.request", &web.Request{Method: "GET", Path: "/items/1", Status: 200}),
	)
	rec.Reset()
	for path, want := range map[string]int{"/items/2": 404, "/items/x": 400, "/": 404} {
		if status, body := get(t, srv.URL+path); status != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	rec.Expect(func(e tidings.Event) bool { return e.Topic() == "db.query" && e.Err() != nil && e.Duration() > 0 })
	bus.Settle()
	if n, failed := metrics.Count("http.request"), metrics.Count("db.query failed"); n != 4 || failed != 1 {
		t.Errorf("%d requests and %d failed queries were counted, want 4 and 1", n, failed)
	}
	for _, line := range []string{"path=/items/1 status=200", "level=WARN msg=query table=items key=2", "path=/ status=404"} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("the log lacks %q:\n%s", line, log.String())
		}
	}
	var out bytes.Buffer
	if _, err := metrics.WriteTo(&out); err != nil || !strings.Contains(out.String(), "item.viewed") {
		t.Errorf("metrics: %v\n%s", err, out.String())
	}
}

// With nobody listening the service works the same.
func TestNobodyListens(t *testing.T) {
	bus := tidingstest.New(t)
	srv := httptest.NewServer(web.Handler(bus.Bus, web.Item{ID: 1}))
	defer srv.Close()
	if status, _ := get(t, srv.URL+"/items/1"); status != 200 {
		t.Errorf("status %d", status)
	}
	if bus.Listening("http.request") {
		t.Error("somebody listens")
	}
}
