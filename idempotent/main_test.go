package idempotent_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	_ "modernc.org/sqlite" // a database that needs no server, in tests only

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/idempotent"
	"github.com/tidings-go/tidings/internal/testkit"
	_ "github.com/tidings-go/tidings/natsbus"
)

// A process that is killed is this test again, told by the environment what to
// do.
const (
	envURL  = "TEST_IDEMPOTENT_URL"
	envFile = "TEST_IDEMPOTENT_FILE"
	envStop = "TEST_IDEMPOTENT_STOP" // where to stand still
)

func TestMain(m *testing.M) {
	if os.Getenv(envURL) != "" {
		if err := subscriberProcess(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func openFile(file string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(20000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	_, err = db.Exec(idempotent.Table{}.Schema() + "; CREATE TABLE IF NOT EXISTS effects (id TEXT)")
	return db, err
}

func openDB(t *testing.T) *sql.DB {
	t.Helper()
	db, err := openFile(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// effect is the write of the handlers here.
func effect(ctx context.Context, tx *sql.Tx, e tidings.Event) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO effects (id) VALUES (?)", e.ID())
	return err
}

func effects(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRow("SELECT COUNT(*) FROM effects").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// subscriberProcess handles what comes, and says each step on its standard
// output. It never ends by itself.
func subscriberProcess() error {
	say := func(what string) {
		fmt.Println(what)
		if what == os.Getenv(envStop) {
			select {}
		}
	}
	db, err := openFile(os.Getenv(envFile))
	if err != nil {
		return err
	}
	ctx := context.Background()
	bus, err := tidings.Open(ctx, os.Getenv(envURL), tidings.Options{App: "billing"})
	if err != nil {
		return err
	}
	h := idempotent.Table{}.Handler(db, "billing", func(ctx context.Context, tx *sql.Tx, e tidings.Event) error {
		err := effect(ctx, tx, e)
		say("written")
		return err
	})
	_, err = bus.Subscribe(ctx, "order.placed", func(ctx context.Context, e tidings.Event) error {
		err := h(ctx, e)
		say(fmt.Sprint("returned ", err))
		return err
	}, &tidings.SubscribeOptions{Durable: true})
	if err != nil {
		return err
	}
	say("subscribed")
	select {}
}

// start runs a subscriberProcess.
func start(t *testing.T, url, file, stop string) *testkit.Process {
	t.Helper()
	return testkit.Spawn(t, envURL+"="+url, envFile+"="+file, envStop+"="+stop)
}
