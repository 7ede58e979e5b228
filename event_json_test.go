package tidings_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
)

type badJSON struct{}

func (badJSON) MarshalJSON() ([]byte, error) { panic("no") }

// An event in JSON is a CloudEvent with its payload; what cannot be encoded is
// said, and costs nothing else.
func TestEventAsJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	type m = map[string]any
	for name, c := range map[string]struct {
		fields tidings.EventFields
		want   m
	}{
		"all": {tidings.EventFields{ID: "7", Topic: "order.placed", Source: "//shop/one", Time: at, Duration: time.Second, Err: errBoom, Payload: order{7}},
			m{"id": "7", "type": "order.placed", "source": "//shop/one", "time": "2026-01-02T03:04:05.000000006Z", "tidingsduration": "1s",
				"tidingserror": "boom", "datacontenttype": "application/json", "data": m{"ID": 7.0}}},
		"least":        {tidings.EventFields{ID: "7", Topic: "a"}, m{"data": nil, "datacontenttype": "application/json"}},
		"instrumented": {tidings.EventFields{ID: "7", Topic: "a", Instrumented: true}, m{"tidingsduration": "0s", "data": nil, "datacontenttype": "application/json"}},
		"text":         {tidings.EventFields{ID: "7", Topic: "a", Payload: "x\n"}, m{"data": "x\n", "datacontenttype": "text/plain; charset=utf-8"}},
		"no text":      {tidings.EventFields{ID: "7", Topic: "a", Payload: "\xff"}, m{"data_base64": "/w==", "datacontenttype": "text/plain; charset=utf-8"}},
		"bytes":        {tidings.EventFields{ID: "7", Topic: "a", Payload: []byte{1}}, m{"data_base64": "AQ==", "datacontenttype": "application/octet-stream"}},
		"broken JSON":  {tidings.EventFields{ID: "7", Topic: "a", Payload: json.RawMessage("{")}, m{"data_base64": "ew==", "datacontenttype": "application/json"}},
		"no JSON":      {tidings.EventFields{ID: "7", Topic: "a", Payload: math.NaN()}, m{"tidingsdataerror": "json: unsupported value: NaN"}},
		"a func":       {tidings.EventFields{ID: "7", Topic: "a", Payload: func() {}}, m{"tidingsdataerror": "json: unsupported type: func()"}},
		"panics":       {tidings.EventFields{ID: "7", Topic: "a", Payload: badJSON{}}, m{"tidingsdataerror": "panic: no"}},
		"no such year": {tidings.EventFields{ID: "7", Topic: "a", Time: at.AddDate(9000, 0, 0)}, m{"data": nil, "datacontenttype": "application/json"}},
	} {
		e := tidings.NewEvent(c.fields)
		maps.Copy(c.want, m{"specversion": "1.0", "id": "7", "type": c.fields.Topic, "tidingsattempt": 1.0})
		data, err := json.Marshal(e)
		var got m
		if err == nil {
			err = json.Unmarshal(data, &got)
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v\n%s, want\n%v", name, err, data, c.want)
		}
	}
	if data, err := json.Marshal(tidings.Event{}); err != nil || !json.Valid(data) {
		t.Errorf("the zero Event: %s, %v", data, err)
	}
}

// What came over a wire shows the same.
func TestEncodedEventAsJSON(t *testing.T) {
	var all [2]string
	for i, encode := range []bool{false, true} {
		b := newBus(t, tidings.Options{App: "a", Instance: "i", AlwaysEncode: encode})
		listen(t, b, ">", func(_ context.Context, e tidings.Event) error {
			data, err := json.Marshal(e)
			all[i] += strings.ReplaceAll(string(data), e.ID(), "ID") + "\n"
			return err
		})
		for _, payload := range []any{order{1}, "text", []byte("bytes")} {
			if err := b.PublishEvent(ctx, tidings.NewEvent(tidings.EventFields{Topic: "a", Payload: payload, Duration: 1})); err != nil {
				t.Error(err)
			}
		}
	}
	if all[0] != all[1] || !strings.Contains(all[0], `"data":{"ID":1}`) {
		t.Errorf("plain:\n%sencoded:\n%s", all[0], all[1])
	}
}

// A time that was not taken is not made up, and later ones are taken.
func TestEventAsJSONHasNoTimeOfAsking(t *testing.T) {
	b := newBus(t, tidings.Options{})
	with := 0
	var last string
	listen(t, b, "a", func(_ context.Context, e tidings.Event) error {
		data, err := json.Marshal(e)
		last = string(data)
		if strings.Contains(last, `"time"`) {
			with++
		}
		return err
	})
	s := listen(t, b, "b", failWith(nil))
	for range 100 { // nobody asks
		announce(t, b, "b")
	}
	s.Stop()
	var e tidings.Event
	listen(t, b, "b", func(_ context.Context, got tidings.Event) error { e = got; return nil })
	for range 100 {
		announce(t, b, "b")
	}
	if data, err := json.Marshal(e); err != nil || strings.Contains(string(data), `"time"`) {
		t.Errorf("nobody had asked for the time of %s, %v", data, err)
	}
	announce(t, b, "b")
	if data, err := json.Marshal(e); err != nil || !strings.Contains(string(data), `"time"`) {
		t.Errorf("the next one: %s, %v", data, err)
	}
	for range 100 {
		announce(t, b, "a")
	}
	if with != 100 {
		t.Errorf("%d of 100 events have a time; the last: %s", with, last)
	}
}

// A Snapshot shows hung events with all they have, and what they hang in.
func TestSnapshotAsJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		b := newBus(t, tidings.Options{Logger: log.logger()})
		release := make(chan struct{})
		s := subscribe(t, b, "x", func(context.Context, tidings.Event) error { hangOnPurpose(release); return nil }, &tidings.SubscribeOptions{Name: "the mailer"})
		_ = b.Publish(ctx, "x", map[string]any{"order": 7})
		time.Sleep(time.Minute)
		data, err := json.Marshal(b.Debugger().Snapshot())
		for _, want := range []string{`"Name":"the mailer"`, `"type":"x"`, `"data":{"order":7}`, `"tidingsattempt":1`, `"Since":"`, `"Stack":"goroutine `, "hangOnPurpose"} {
			if err != nil || !strings.Contains(string(data), want) {
				t.Errorf("lacks %s: %s, %v", want, data, err)
			}
		}
		if got := log.with("does not return"); len(got) != 1 || !strings.Contains(got[0], `subscription="the mailer"`) {
			t.Errorf("logged %q", got)
		}
		if s.String() != fmt.Sprintf(`subscription "the mailer": x of group %q`, b.Debugger().Snapshot().Subscriptions[0].Group) {
			t.Errorf("called %s", s)
		}
		close(release)
		drain(t, b)
	})
}

// Logs have the topic and id of an event, never its payload, in either format.
func TestLoggedEventHasNoPayload(t *testing.T) {
	var log lines
	e := tidings.NewEvent(tidings.EventFields{Topic: "a", ID: "7", Payload: "secret"})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "event", e)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "event", e)
	if len(log.with("a 7")) != 2 || len(log.with("secret")) != 0 {
		t.Errorf("logged %q", log.all)
	}
}
