package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/topic"
)

// Metadata that marks what Tidings has made, and for whom.
const (
	metaApp     = "tidings.app"
	metaGroup   = "tidings.group"
	metaPattern = "tidings.pattern"
)

// A Declaration says which topics of an app are durable, and how its stream is
// to be. An app declares by its routes and URL; "tidings apply" reads a file.
type Declaration struct {
	App     string   `json:"app"`
	Durable []string `json:"durable"` // patterns
	// Fixed: its users may not make streams, so those of its delayed events and of dead
	// letters, which it would make when they are needed, are made as well.
	Fixed bool `json:"fixed,omitempty"`
	Settings
}

// A Plan is what has to happen so that streams are as declared.
type Plan struct {
	App         string            `json:"app"`
	Stream      string            `json:"stream"` // the app's own
	Create      bool              `json:"create"`
	Add         []string          `json:"add,omitempty"`       // subjects that no stream has yet
	Elsewhere   map[string]string `json:"elsewhere,omitempty"` // of the others, which stream of another app has them
	Differences []Difference      `json:"differences,omitempty"`
	Beside      []string          `json:"beside,omitempty"` // streams that are not there, of a Declaration that is Fixed

	declared Settings
	have     jetstream.StreamConfig // unless Create
	foreign  []*jetstream.StreamInfo
}

// Change reports whether something has to be done.
func (p *Plan) Change() bool {
	return p.Create || len(p.Add) > 0 || len(p.Differences) > 0 || len(p.Beside) > 0
}

// Fixed is an error that shows what cannot be changed, nil if there is nothing
// of that.
func (p *Plan) Fixed() error {
	if err := fixed(p.Stream, p.Differences); err != nil {
		return fmt.Errorf("natsbus: %w", err)
	}
	return nil
}

// ensureStreams makes sure that a stream covers every durable route of the app.
// Whose stream it is does not matter; what nobody covers goes to the app's own.
func (c *conn) ensureStreams(ctx context.Context, manage bool) error {
	if len(c.cfg.Durable) == 0 {
		return nil
	}
	ctx, cancel := withLimit(ctx, subscribeTimeout)
	defer cancel()
	p, err := c.ensure(ctx, Declaration{App: c.cfg.App, Durable: c.cfg.Durable, Settings: c.addr.settings}, manage)
	if err != nil {
		return err
	}
	for pattern, stream := range p.Elsewhere {
		c.log.Info("natsbus: a durable route is kept in a stream that is not this app's own", "route", pattern, "stream", stream)
	}
	for _, info := range p.foreign {
		if _, diffs := (Settings{}).settle(info.Config); len(diffs) > 0 {
			c.log.Warn("natsbus: a stream that was not made by Tidings may lose durable events", "stream", info.Config.Name, "differences", say(diffs))
		}
	}
	if !manage && len(p.Differences) > 0 {
		c.log.Warn("natsbus: the stream is not as declared: run tidings apply, or put manage=true into the URL", "stream", p.Stream, "differences", say(p.Differences))
	}
	return nil
}

func say(diffs []Difference) string {
	var all []string
	for _, d := range diffs {
		all = append(all, d.String())
	}
	return strings.Join(all, "; ")
}

// ensure makes the streams cover what is declared, and returns what it found
// first. Settings are changed only if manage says so, and then once: of two
// versions that declare different ones and start again and again, the one that
// started last wins, and neither undoes the other's while both run.
func (c *conn) ensure(ctx context.Context, d Declaration, manage bool) (*Plan, error) {
	first, err := c.plan(ctx, d)
	for p := first; ; {
		if err == nil {
			err = p.Fixed()
		}
		if err != nil {
			return nil, err
		}
		changed, failed := c.apply(ctx, p, manage)
		switch {
		case failed == nil && !changed:
			return first, nil
		case failed == nil:
			manage = false
		case !raced(failed):
			return nil, failed
		}
		// Another process creates or extends it at this moment, or has overwritten
		// what was added: the server has no way to change only what one has read.
		select {
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("stream %s is changed by other processes again and again: %w", p.Stream, errors.Join(context.Cause(ctx), failed))
		}
		p, err = c.plan(ctx, d)
	}
}

// plan compares what is declared with what is there.
func (c *conn) plan(ctx context.Context, d Declaration) (*Plan, error) {
	p := &Plan{App: d.App, Stream: streamName(c.cfg.Prefix, d.App), Elsewhere: map[string]string{}, declared: d.Settings}
	own, err := c.streamInfo(ctx, p.Stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		own = nil
	case err != nil:
		return nil, fmt.Errorf("natsbus: stream %s: %w", p.Stream, err)
	default:
		p.have = own.Config
		_, p.Differences = d.settle(own.Config)
	}
	for _, pattern := range d.Durable {
		if own != nil && covers(own, c.subject(pattern)) {
			continue // and no other stream has any of it
		}
		if err := c.place(ctx, p, pattern); err != nil {
			return nil, fmt.Errorf("natsbus: durable route %q: %w", pattern, err)
		}
	}
	p.Create = own == nil && len(p.Add) > 0
	return p, nil
}

// place finds the stream that has a pattern which the app's own has not, or plans to add
// it there.
func (c *conn) place(ctx context.Context, p *Plan, pattern string) error {
	subject := c.subject(pattern)
	near, err := c.streamsNear(ctx, subject)
	if err != nil {
		return err
	}
	for _, info := range near {
		if !covers(info, subject) {
			continue
		}
		if info.Config.Name == p.Stream {
			return nil // by now
		}
		p.Elsewhere[pattern] = info.Config.Name
		if info.Config.Metadata[metaApp] == "" {
			p.foreign = append(p.foreign, info)
		}
		return nil
	}
	for _, info := range near {
		if info.Config.Name != p.Stream {
			return fmt.Errorf("stream %s%s already has a part of it (%s), so stream %s cannot have all of it: declare %q in the app of stream %s, or narrow the route",
				info.Config.Name, ofApp(info), strings.Join(info.Config.Subjects, " "), p.Stream, pattern, info.Config.Name)
		}
	}
	p.Add = append(slices.DeleteFunc(p.Add, func(s string) bool { return topic.Covers(subject, s) }), subject)
	return nil
}

func ofApp(info *jetstream.StreamInfo) string {
	if app := info.Config.Metadata[metaApp]; app != "" {
		return " of app " + app
	}
	return ""
}

// apply does what is planned, but for settings unless manage.
func (c *conn) apply(ctx context.Context, p *Plan, manage bool) (changed bool, err error) {
	if p.Create {
		return c.createStream(ctx, p)
	}
	cfg := p.have
	if manage {
		cfg, _ = p.declared.settle(cfg)
	}
	if len(p.Add) == 0 && (!manage || len(p.Differences) == 0) {
		return false, nil
	}
	for _, subject := range p.Add {
		cfg.Subjects = append(slices.DeleteFunc(slices.Clone(cfg.Subjects), func(s string) bool { return topic.Covers(subject, s) }), subject)
	}
	err = c.api(ctx, "STREAM.UPDATE."+p.Stream, func(ctx context.Context) error {
		_, err := c.js.UpdateStream(ctx, cfg)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("natsbus: change stream %s (add %s; %s): %w", p.Stream, strings.Join(p.Add, " "), say(p.Differences), err)
	}
	c.log.Info("natsbus: stream changed", "stream", p.Stream, "subjects", cfg.Subjects, "differences", say(p.Differences), "settings_too", manage)
	return true, nil
}

func (c *conn) createStream(ctx context.Context, p *Plan) (changed bool, err error) {
	want := p.declared
	cfg := jetstream.StreamConfig{
		Name: p.Stream, Subjects: p.Add, Description: "durable events of " + p.App,
		Storage: jetstream.FileStorage, Replicas: want.Replicas, Retention: jetstream.LimitsPolicy,
		Discard:    jetstream.DiscardNew, // a full stream is the publisher's error, never a group's loss
		Duplicates: want.Duplicates, MaxBytes: want.MaxBytes, MaxMsgs: want.MaxMsgs, AllowDirect: true, AllowMsgTTL: c.serverHas(2, 11), AllowAtomicPublish: c.batchSync(),
		Metadata: map[string]string{metaApp: p.App},
	}
	if cfg.Duplicates == 0 {
		cfg.Duplicates = dedupWindow
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = streamMaxBytes
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = c.replicas()
	}
	for {
		err = c.api(ctx, "STREAM.CREATE."+p.Stream, func(ctx context.Context) error {
			_, err := c.js.CreateStream(ctx, cfg)
			return err
		})
		switch {
		case noRoom(err) && want.MaxBytes == 0 && cfg.MaxBytes/2 >= streamMinBytes:
			cfg.MaxBytes /= 2 // what the account allows
		case fewPeers(err) && want.Replicas == 0 && cfg.Replicas > 1:
			c.log.Warn("natsbus: the cluster cannot hold three copies of the stream; one server that dies takes it along until it is back", "stream", p.Stream, "cause", err)
			cfg.Replicas = 1
		case err != nil:
			return false, fmt.Errorf("natsbus: create stream %s for %s: %w", cfg.Name, strings.Join(cfg.Subjects, " "), c.createError(err))
		default:
			c.log.Info("natsbus: stream created", "stream", cfg.Name, "subjects", cfg.Subjects, "max_bytes", cfg.MaxBytes, "replicas", cfg.Replicas)
			return true, nil
		}
	}
}

func (c *conn) createError(err error) error {
	switch {
	case noRoom(err):
		return fmt.Errorf("the server or account has no room for it: raise max_file_store of the server or the account's limit, or set max-bytes in the URL: %w", err)
	case errCode(err) == jsBadConfig && strings.Contains(err.Error(), "no-ack"):
		return fmt.Errorf("a route this wide takes JetStream's own subjects too: name the topics (order.>), or set Options.Prefix: %w", err)
	}
	return err
}

// replicas of a new stream: a cluster has enough servers to lose one.
func (c *conn) replicas() int {
	if c.nc.ConnectedClusterName() != "" {
		return 3
	}
	return 1
}

func (c *conn) streamInfo(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	return inquire[jetstream.StreamInfo](ctx, c, "STREAM.INFO."+name, nil)
}

// streamsNear returns the streams that share subjects with subject; with all, if that is
// empty.
func (c *conn) streamsNear(ctx context.Context, subject string) (near []*jetstream.StreamInfo, err error) {
	for {
		page, err := inquire[streamPage](ctx, c, "STREAM.LIST", map[string]any{"offset": len(near), "subject": subject})
		if err != nil {
			return nil, err
		}
		near = append(near, page.Streams...)
		if len(page.Streams) == 0 || len(near) >= page.Total {
			return near, nil
		}
	}
}

func (c *conn) listStreams(ctx context.Context) ([]*jetstream.StreamInfo, error) {
	return c.streamsNear(ctx, "")
}

func covers(info *jetstream.StreamInfo, subject string) bool {
	return slices.ContainsFunc(info.Config.Subjects, func(s string) bool { return topic.Covers(s, subject) })
}

// streamName is that of an app's own stream.
func streamName(prefix, app string) string {
	if prefix == "" {
		return sanitize(app)
	}
	return sanitize(prefix + "_" + app)
}

// sanitize makes a name that JetStream takes and people can read.
func sanitize(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		case r == '>':
			return 'A' // all
		}
		return '_'
	}, s)
}
