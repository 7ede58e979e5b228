package tidings

import (
	"encoding/json"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"
)

// cloudEvent is an event in the JSON format of CloudEvents 1.0. What that has no
// attribute for is in extensions of ours.
type cloudEvent struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source,omitempty"`
	Type        string          `json:"type"`
	Time        time.Time       `json:"time,omitzero"`
	Duration    string          `json:"tidingsduration,omitempty"`
	Err         string          `json:"tidingserror,omitempty"`
	Attempt     int             `json:"tidingsattempt"`
	ContentType string          `json:"datacontenttype,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"`
	Base64      []byte          `json:"data_base64,omitempty"`
	DataErr     string          `json:"tidingsdataerror,omitempty"` // why there is no data
}

// MarshalJSON is for tools: the event with its payload, as a CloudEvent in JSON
// (the topic is its type), also inside what a [Debugger] returns. It does not
// fail: the time is left out if no clock was read for this event (see
// [Event.Time]), and instead of a payload that cannot be encoded it says why.
func (e Event) MarshalJSON() ([]byte, error) {
	c := cloudEvent{SpecVersion: "1.0", ID: e.ID(), Source: e.Source(), Type: e.Topic(), Attempt: e.Attempt()}
	if at, _ := e.when(); at.Year() <= 9999 && at.Year() >= 0 { // JSON has no other years
		c.Time = at
	}
	if e.Instrumented() {
		c.Duration = e.Duration().String()
	}
	if err := e.Err(); err != nil {
		c.Err = err.Error()
	}
	if e.r != nil {
		c.setData(e)
	}
	return json.Marshal(c)
}

func (c *cloudEvent) setData(e Event) {
	var data []byte
	err := protect(func() (err error) { // the payload's methods are user code
		if m := e.r.msg; m != nil {
			data, c.ContentType = m.Data, m.ContentType
			return nil
		}
		data, c.ContentType, err = e.codec().Encode(e.payload)
		return err
	})
	switch {
	case err != nil:
		c.ContentType, c.DataErr = "", err.Error()
	case isJSON(c.ContentType) && json.Valid(data):
		c.Data = data
	case strings.HasPrefix(c.ContentType, "text/") && utf8.Valid(data):
		c.Data, _ = json.Marshal(string(data)) // text always can be
	default:
		c.Base64 = data
	}
}

// LogValue keeps the payload out of logs that are JSON: it is what String returns.
func (e Event) LogValue() slog.Value { return slog.StringValue(e.String()) }

// MarshalJSON has the stack as text.
func (h Hung) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Event Event
		Since time.Time
		Stack string
	}{h.Event, h.Since, string(h.Stack)})
}
