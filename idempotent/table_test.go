package idempotent_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/idempotent"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
)

func event(id string) tidings.Event {
	return tidings.NewEvent(tidings.EventFields{ID: id, Topic: "order.placed"})
}

func TestHandlesEachEventOncePerGroup(t *testing.T) {
	db := openDB(t)
	for _, group := range []string{"billing", "billing", "mail", "billing"} {
		if err := (idempotent.Table{}).Handler(db, group, effect)(t.Context(), event("1")); err != nil {
			t.Fatal(err)
		}
	}
	if n := effects(t, db); n != 2 {
		t.Errorf("the event had %d effects in two groups", n)
	}
}

func TestFailedHandlerLeavesNothing(t *testing.T) {
	db := openDB(t)
	boom := errors.New("boom")
	outcome := func() error { return boom }
	h := idempotent.Table{}.Handler(db, "billing", func(ctx context.Context, tx *sql.Tx, e tidings.Event) error {
		if err := effect(ctx, tx, e); err != nil {
			return err
		}
		return outcome()
	})
	if err := h(t.Context(), event("1")); !errors.Is(err, boom) {
		t.Errorf("the handler's error became %v", err)
	}
	outcome = func() error { panic(boom) }
	func() {
		defer func() {
			if p := recover(); p != boom {
				t.Errorf("the panic became %v", p)
			}
		}()
		_ = h(t.Context(), event("1"))
	}()
	if n := effects(t, db); n != 0 {
		t.Errorf("%d effects of attempts that failed", n)
	}
	outcome = func() error { return nil }
	if err := h(t.Context(), event("1")); err != nil {
		t.Fatal(err)
	}
	if n := effects(t, db); n != 1 {
		t.Errorf("%d effects after the attempt that did not fail", n)
	}
}

// Each has its own connection pool, as two processes have.
func TestTwoAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "test.db")
	var ran atomic.Int32
	inside, goOn := make(chan struct{}), make(chan struct{})
	errs := make(chan error, 2)
	handle := func(hold bool) func(context.Context) {
		db, err := openFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() }) // only read from here on
		h := idempotent.Table{}.Handler(db, "billing", func(ctx context.Context, tx *sql.Tx, e tidings.Event) error {
			ran.Add(1)
			if hold {
				close(inside)
				<-goOn
			}
			return effect(ctx, tx, e)
		})
		return func(context.Context) { errs <- h(t.Context(), event("1")) }
	}
	first, second := handle(true), handle(false)
	loop.Go(first)
	<-inside
	loop.Go(second)
	close(goOn)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if ran.Load() != 1 {
		t.Errorf("the handler ran %d times", ran.Load())
	}
}

func TestIDsAreKeptApart(t *testing.T) {
	db := openDB(t)
	table := idempotent.Table{Name: "main.odd_ids"}
	if _, err := db.Exec(table.Schema()); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 300)
	ids := []string{"a", "A", "a ", " a", "ä", "a\x00", long, long + "y", strings.Repeat("x", 191), "sha256:a"}
	h := table.Handler(db, "billing", effect)
	for range 2 {
		for _, id := range ids {
			if err := h(t.Context(), event(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := effects(t, db); n != len(ids) {
		t.Errorf("%d of %d ids are told apart", n, len(ids))
	}
}

func TestForget(t *testing.T) {
	db := openDB(t)
	table := idempotent.Table{}
	h := table.Handler(db, "billing", effect)
	handle := func() {
		t.Helper()
		if err := h(t.Context(), event("1")); err != nil {
			t.Fatal(err)
		}
	}
	handle()
	if n, err := table.Forget(t.Context(), db, time.Hour); n != 0 || err != nil {
		t.Fatalf("a young id: %d forgotten, %v", n, err)
	}
	handle()
	if n, err := table.Forget(t.Context(), db, -2*time.Second); n != 1 || err != nil {
		t.Fatalf("%d forgotten, %v", n, err)
	}
	handle()
	if n := effects(t, db); n != 2 {
		t.Errorf("%d effects; once before it was forgotten and once after it are 2", n)
	}
}

func TestMisuseIsNamed(t *testing.T) {
	db := openDB(t)
	for _, c := range []struct {
		table     idempotent.Table
		group, id string
		says      string
	}{
		{idempotent.Table{Name: "x; DROP TABLE y"}, "g", "1", "Table.Name"},
		{idempotent.Table{Dialect: 9}, "g", "1", "Table.Dialect 9"},
		{idempotent.Table{}, "", "1", "group"},
		{idempotent.Table{Name: "absent"}, "g", "1", "absent"},
	} {
		err := c.table.Handler(db, c.group, effect)(t.Context(), event(c.id))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: the error is %v, and should speak of %q", c.table, err, c.says)
		}
	}
	if n := effects(t, db); n != 0 {
		t.Errorf("%d effects", n)
	}
}

// The process is killed after its write and before the commit, then after the
// commit and before the acknowledgement. The third one says what is left to do.
func TestKilledBetweenEffectAndCommit(t *testing.T) {
	t.Parallel()
	broker := testkit.Server(t)
	file := filepath.Join(t.TempDir(), "test.db")
	bus, err := tidings.Open(t.Context(), broker.URL(), tidings.Options{App: "shop", Routes: []tidings.Route{{Pattern: "order.>", Class: tidings.Durable}}})
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if err := bus.Publish(t.Context(), "order.placed", 7); err != nil {
		t.Fatal(err)
	}
	db, err := openFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, c := range []struct {
		stop    string
		says    []string
		effects int
	}{
		{"written", []string{"subscribed", "written"}, 0},
		{"returned <nil>", []string{"subscribed", "written", "returned <nil>"}, 1},
		{"returned <nil>", []string{"subscribed", "returned <nil>"}, 1},
	} {
		p := start(t, broker.URL(), file, c.stop)
		for _, line := range c.says {
			p.Expect(line)
		}
		p.Kill()
		if n := effects(t, db); n != c.effects {
			t.Fatalf("%d effects after the process was killed at %q, want %d", n, c.stop, c.effects)
		}
	}
}
