package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	_ "github.com/tidings-go/tidings/adapter/memory"
)

// "Every method of the bus may be called inside every handler": each call of
// calls is made in each place of places, where code of the user's runs, in each
// world and variant. One such cell has a bus and a bubble of its own. The call
// returns nil or one of the errors that are meant for it, in bounded time; then
// the bus ends, and so does every subscription and every goroutine.

// Topics of a cell.
const (
	own    = "reentrancy.own"    // what the place belongs to
	other  = "reentrancy.other"  // of another, queued and inline subscription
	nobody = "reentrancy.nobody" // without any
)

// world is where the bus of a cell gets its events from.
type world uint8

const (
	inProcess world = 1 << iota
	attached        // to the memory transport; the bus publishes
	remote          // to the memory transport; another bus publishes
	anywhere  = inProcess | attached | remote
	here      = inProcess | attached
)

func (w world) String() string {
	return map[world]string{inProcess: "in process", attached: "attached", remote: "remote"}[w]
}

// variant is how the call is made, and what it finds.
type variant struct {
	background bool // with context.Background() instead of the place's own context
	full       bool // the queues, of the place and of the other subscription, are full
}

func (v variant) String() string {
	s := "own ctx"
	if v.background {
		s = "background"
	}
	if v.full {
		s += ", full"
	}
	return s
}

// What bounds a cell, in the bubble's time: a handler that holds its queue does so
// for longer than BlockTimeout and Request wait.
const (
	holds   = 8 * time.Second
	bounded = time.Minute
)

var errPlace = errors.New("a handler's own failure")

// cell is one call in one place.
type cell struct {
	t     *testing.T
	world world
	variant
	do func(c *cell, ctx context.Context, e tidings.Event) error

	opts      tidings.Options // what the place sets, before the first subscription
	bus, peer *tidings.Bus    // peer is of another app and publishes in the world remote
	own       *tidings.Subscription
	other     *tidings.Subscription
	typed     tidings.Topic[int] // of the topic other
	released  chan struct{}

	mu           sync.Mutex
	subs         []*tidings.Subscription
	armed, begun atomic.Bool
	ended        chan struct{}
	cut          bool // the call's own context ended: what it drained may be incomplete
}

func TestReentrancy(t *testing.T) {
	// The Default bus is shared by all bubbles: what it makes at first use must not
	// belong to one of them.
	s, err := tidings.Subscribe(ctx, own, nothing, inline)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	<-s.Done()
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for _, w := range []world{inProcess, attached, remote} {
				if p.worlds&w == 0 {
					continue
				}
				for _, call := range calls {
					for _, v := range []variant{{}, {full: true}, {background: true}, {true, true}} {
						t.Run(fmt.Sprintf("%s/%s/%s", w, call.name, v), func(t *testing.T) {
							runCell(t, &cell{world: w, variant: v, do: call.do}, p.run)
						})
					}
				}
			}
		})
	}
}

func runCell(t *testing.T, c *cell, place func(*cell)) {
	// A goroutine that waits for a mutex is not "durably blocked", so that the
	// bubble does not see such a deadlock: the clock on the wall has to.
	name := t.Name()
	watchdog := time.AfterFunc(time.Minute, func() {
		all := make([]byte, 1<<20)
		panic(name + " hangs:\n" + string(all[:runtime.Stack(all, true)]))
	})
	defer watchdog.Stop()
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("%v\n%s", p, debug.Stack()) // the bubble's deadlock, and where
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		c.t, c.ended, c.released = t, make(chan struct{}), make(chan struct{})
		place(c)
		c.end()
	})
}

// open makes the buses once the place has set its options.
func (c *cell) open() {
	if c.bus != nil {
		return
	}
	time.AfterFunc(holds, func() { close(c.released) })
	c.opts.App = "own"
	c.bus = newBus(c.t, c.opts)
	if c.world != inProcess {
		if err := c.bus.Attach(ctx, "mem:"+c.t.Name()); err != nil {
			c.t.Fatal(err)
		}
	}
	if c.world == remote {
		c.peer = newBus(c.t, tidings.Options{App: "peer", Routes: c.opts.Routes})
		if err := c.peer.Attach(ctx, "mem:"+c.t.Name()); err != nil {
			c.t.Fatal(err)
		}
	}
	c.typed = tidings.NewTopic[int](other).On(c.bus)
	o := &tidings.SubscribeOptions{}
	if c.full {
		o.Queue = 1
	}
	c.other = c.keep(c.bus.Subscribe(ctx, other, func(ctx context.Context, _ tidings.Event) error {
		if c.full {
			<-c.released
		}
		_ = tidings.Reply(ctx, 1) // most events are no requests
		return nil
	}, o))
	c.keep(c.bus.Subscribe(ctx, other, func(context.Context, tidings.Event) error { return nil }, inline))
	for range 2 {
		if c.full {
			_ = c.bus.Publish(ctx, other, 1)
			synctest.Wait()
		}
	}
}

var inline = &tidings.SubscribeOptions{Inline: true}

// keep notes a subscription whose end is waited for.
func (c *cell) keep(s *tidings.Subscription, err error) *tidings.Subscription {
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.subs = append(c.subs, s)
	}
	return s
}

// subscribe makes the subscription that the place belongs to.
func (c *cell) subscribe(h tidings.Handler, o *tidings.SubscribeOptions) {
	c.open()
	s, err := c.bus.Subscribe(ctx, own, h, c.sized(o))
	if err != nil {
		c.t.Fatal(err)
	}
	c.own = c.keep(s, nil)
}

// sized is o with a small queue in cells where it is to be full.
func (c *cell) sized(o *tidings.SubscribeOptions) *tidings.SubscribeOptions {
	sized := tidings.SubscribeOptions{}
	if o != nil {
		sized = *o
	}
	if c.full && !sized.Inline && sized.Queue == 0 {
		sized.Queue = max(sized.Workers, 1)
	}
	return &sized
}

// handle is a handler in which the call is made, at a time when further events
// have filled the queue.
func (c *cell) handle(ctx context.Context, e tidings.Event) error {
	<-time.After(time.Millisecond)
	c.call(ctx, e)
	return nil
}

// arm lets the next who comes by make the call.
func (c *cell) arm() { c.armed.Store(true) }

// publisher is whose events the place gets.
func (c *cell) publisher() *tidings.Bus {
	if c.peer != nil {
		return c.peer
	}
	return c.bus
}

// fire publishes to the place until its queue is full. What the call does may
// make that fail.
func (c *cell) fire() {
	c.arm()
	for i := range 4 {
		if i == 0 || c.full {
			_ = c.publisher().Publish(placeCtx, own, i)
			synctest.Wait()
		}
	}
}

type placeKey struct{}

// placeCtx is the own context of places that are given none.
var placeCtx = context.WithValue(context.Background(), placeKey{}, true)

// call makes the cell's call: once, since many calls lead to the place again.
func (c *cell) call(ctx context.Context, e tidings.Event) {
	if !c.armed.Load() || c.begun.Swap(true) {
		return
	}
	defer close(c.ended)
	if c.background {
		ctx = context.Background()
	}
	start, returned := time.Now(), false
	defer func() {
		if !returned {
			c.t.Errorf("the call panicked: %v\n%s", recover(), debug.Stack())
		}
	}()
	err := c.do(c, ctx, e)
	returned, c.cut = true, ctx.Err() != nil
	if took := time.Since(start); took > bounded {
		c.t.Errorf("the call took %v", took)
	}
	if !meant(ctx, err) {
		c.t.Errorf("the call returned %v", err)
	}
}

// callHere is call where there is neither a context nor an event.
func (c *cell) callHere() { c.call(placeCtx, made) }

var made = tidings.NewEvent(tidings.EventFields{Topic: own, Payload: 1})

// meant reports whether an error is one that callers are told of.
func meant(ctx context.Context, err error) bool {
	if err == nil || (ctx.Err() != nil && errors.Is(err, ctx.Err())) {
		return true
	}
	return slices.ContainsFunc([]error{
		tidings.ErrClosed, tidings.ErrDraining, tidings.ErrOverflow, tidings.ErrNoResponder, tidings.ErrTopic,
		tidings.ErrNotDurable, tidings.ErrAttached, context.DeadlineExceeded, errPlace,
	}, func(target error) bool { return errors.Is(err, target) })
}

// end waits for the call and ends the bus, in one half of the cells by Drain.
func (c *cell) end() {
	select {
	case <-c.ended:
	case <-time.After(2 * bounded):
		c.t.Errorf("the call was made: %v; it has not returned", c.begun.Load())
	}
	if c.background {
		if err := c.bus.Close(); err != nil {
			c.t.Errorf("Close: %v", err)
		}
	} else {
		ctx, cancel := context.WithTimeout(ctx, bounded)
		defer cancel()
		if err := c.bus.Drain(ctx); err != nil && !c.cut {
			c.t.Errorf("Drain: %v", err)
		}
	}
	if c.peer != nil {
		_ = c.peer.Close()
	}
	for _, s := range c.subs {
		select {
		case <-s.Done():
		case <-time.After(bounded):
			c.t.Errorf("%v has not ended", s)
		}
	}
	<-c.released // a drain that was cut has left handlers behind
}

// exempt are those that have no bus to wait for: they are covered by their own
// tests.
var exempt = []string{
	"Class.String", "Error.Error", "Error.Unwrap", "PanicError.Error", "PanicError.Unwrap", "LeftError.Error", "LeftError.Unwrap",
}

// A new method is in the matrix, or this says that it is not.
func TestReentrancyHasEveryMethod(t *testing.T) {
	var have []string
	for _, call := range calls {
		name, _, _ := strings.Cut(call.name, " ")
		have = append(append(have, name), strings.Fields(call.and)...)
	}
	want := exported(t)
	for _, v := range []any{(*tidings.Bus)(nil), (*tidings.Subscription)(nil), (*tidings.Debugger)(nil), (*tidings.Span)(nil), tidings.Topic[int]{}, tidings.Event{}} {
		rt := reflect.TypeOf(v)
		of := rt
		if rt.Kind() == reflect.Pointer {
			of = rt.Elem()
		}
		name, _, _ := strings.Cut(of.Name(), "[")
		for i := range rt.NumMethod() {
			want = append(want, name+"."+rt.Method(i).Name)
		}
	}
	if len(want) < 50 {
		t.Fatalf("found only %d methods: %q", len(want), want)
	}
	for _, name := range want {
		if !slices.Contains(have, name) && !slices.Contains(exempt, name) {
			t.Errorf("%s has no row in calls", name)
		}
	}
	for _, name := range append(have, exempt...) {
		if !slices.Contains(want, name) {
			t.Errorf("%s has a row, and does not exist", name)
		}
	}
}

// exported reads the functions and methods of the package from its source, since
// nothing lists the functions at run time.
func exported(t *testing.T) (names []string) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.IsExported() {
				if name := receiver(fn) + fn.Name.Name; ast.IsExported(name) {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// receiver is "T." for a method of T, *T or T[…].
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return ""
	}
	expr := fn.Recv.List[0].Type
	for {
		switch x := expr.(type) {
		case *ast.StarExpr:
			expr = x.X
		case *ast.IndexExpr:
			expr = x.X
		case *ast.Ident:
			return x.Name + "."
		}
	}
}

func (c *cell) durable() {
	c.opts.Routes = []tidings.Route{{Pattern: own, Class: tidings.Durable}, {Pattern: ">", Class: tidings.Live}}
}

func doneOfAsync(c *cell) {
	c.subscribe(nothing, nil)
	c.arm()
	_ = c.bus.PublishAsync(placeCtx, own, 1, func(error) { c.call(placeCtx, made) })
}

func inlineOfAsync(c *cell) {
	c.durable()
	c.subscribe(c.handle, inline)
	c.arm()
	_ = c.bus.PublishAsync(placeCtx, own, 1, nil)
}
