package tidings_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/subscriber"
)

// class is a Subscriber class of a scenario: a table of handlers here.
type class struct {
	id, parent string
	log        bool
	methods    []string
	private    []string
	levels     map[string]any
	raises     any
}

type attachment struct {
	class, namespace string
	methods          []string
	to               []*subscriber.Attached
	listener         *listener // its place among the others
}

func (r *replay) subscriberOp(ctx context.Context, o op) error {
	switch o.str("op") {
	case "class":
		r.classes[o.str("id")] = &class{id: o.str("id"), parent: o.str("parent"), log: o.yes("log"),
			methods: stringsOf(o["methods"]), private: stringsOf(o["private"]), levels: o.hash("levels"), raises: o["raises"]}
	case "logger":
		return r.level.set(o.str("level"))
	case "attach":
		return r.attach(ctx, o)
	case "detach":
		r.detach(o)
	case "add_method":
		return r.addMethod(ctx, o)
	}
	return nil
}

func stringsOf(v any) (out []string) {
	list, _ := v.([]any)
	for _, s := range list {
		out = append(out, fmt.Sprint(s))
	}
	return out
}

// table has the handlers of a class; inherited ones only if asked for.
func (r *replay) table(self *class, inherit bool) handlers {
	out := handlers{}
	var seen []string // nearer to self, public or not
	for c := self; c != nil; c = r.classes[c.parent] {
		for _, m := range c.methods {
			if !slices.Contains(seen, m) {
				out[m] = r.method(self, c, m)
			}
		}
		seen = slices.Concat(seen, c.methods, c.private)
		if !inherit {
			break
		}
	}
	return out
}

// eventName: a method of any name handles events here, so these are excepted.
func eventName(method string) bool { return method != "start" && method != "finish" }

type handlers map[string]tidings.Handler

// Handlers implements what package subscriber looks for.
func (h handlers) Handlers() map[string]tidings.Handler { return h }

func (r *replay) method(self, defined *class, name string) tidings.Handler {
	return func(_ context.Context, e tidings.Event) error {
		r.note(entry{"ev": "method", "sub": defined.id, "method": name, "name": e.Topic(), "payload": shown(e), "self_class": self.id})
		err := raised(defined.raises)
		if err != nil && !r.isLog(self) {
			r.failures++
		}
		return err
	}
}

func (r *replay) attach(ctx context.Context, o op) error {
	c := r.classes[o.str("id")]
	table := r.table(c, o.yes("inherit_all"))
	a := &attachment{class: c.id, namespace: o.str("namespace"), methods: slices.Sorted(maps.Keys(table))}
	a.listener = &listener{r: r, id: c.id, kind: "method", pattern: op{"kind": "string"}, spec: op{}, order: r.next(), silencable: r.isLog(c)}
	if !r.isLog(c) && c.raises != nil {
		a.listener.spec = op{"raises": c.raises}
	}
	r.attached, r.everAttached = append(r.attached, a), append(r.everAttached, a)
	if !slices.ContainsFunc(a.methods, eventName) {
		return nil // to attach nothing is an error here; methods may follow
	}
	return r.attachTable(ctx, a, c, table)
}

func (r *replay) attachTable(ctx context.Context, a *attachment, c *class, table handlers) error {
	so := &subscriber.Options{Subscribe: &tidings.SubscribeOptions{Inline: true},
		Topic: func(namespace, event string) string { return event + "." + namespace }}
	for name := range table {
		if !eventName(name) {
			so.Except = append(so.Except, name)
		}
	}
	if r.isLog(c) {
		so.Logger, so.Level = r.logger, func(method string) slog.Level { return r.levelOf(c, method) }
	}
	to, err := subscriber.Attach(ctx, r.bus, a.namespace, table, so)
	if err == nil {
		a.to = append(a.to, to)
	}
	return err
}

func (r *replay) isLog(c *class) bool {
	for ; c != nil; c = r.classes[c.parent] {
		if c.log {
			return true
		}
	}
	return false
}

func (r *replay) detach(o op) {
	for i, a := range r.attached {
		if a.class == o.str("id") && a.namespace == o.str("namespace") {
			for _, to := range a.to {
				to.Detach()
			}
			r.attached = slices.Delete(r.attached, i, i+1)
			return
		}
	}
}

// addMethod attaches a table of the new method alone.
func (r *replay) addMethod(ctx context.Context, o op) error {
	c, name := r.classes[o.str("id")], o.str("method")
	r.uses("methods-later")
	known := slices.Contains(c.methods, name)
	c.methods = append(c.methods, name)
	for _, a := range r.attached {
		if a.class == c.id && !known && !slices.Contains(a.methods, name) && eventName(name) {
			if err := r.attachTable(ctx, a, c, handlers{name: r.method(c, c, name)}); err != nil {
				return err
			}
		}
	}
	return nil
}
