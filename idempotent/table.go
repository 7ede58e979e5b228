package idempotent

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
)

// Dialect is how a database writes what differs.
type Dialect uint8

// The databases whose statements are known.
const (
	SQLite Dialect = iota
	PostgreSQL
	MySQL
)

// DefaultName is the name of a table that was given none.
const DefaultName = "tidings_inbox"

// Table is where the ids of handled events are. The zero Table is the one of
// SQLite with the default name. Its methods may be called concurrently, and
// inside handlers.
type Table struct {
	// Name may be qualified by a schema: letters, digits, "_" and ".". Default:
	// [DefaultName].
	Name    string
	Dialect Dialect
}

// maxText is how long a group or id may be to be stored as it is.
const maxText = 191

var create = map[Dialect]string{
	SQLite:     "CREATE TABLE IF NOT EXISTS %s (grp TEXT NOT NULL, id TEXT NOT NULL, handled_at INTEGER NOT NULL, PRIMARY KEY (grp, id))",
	PostgreSQL: "CREATE TABLE IF NOT EXISTS %s (grp VARCHAR(191) NOT NULL, id VARCHAR(191) NOT NULL, handled_at BIGINT NOT NULL, PRIMARY KEY (grp, id))",
	// Compared byte by byte: the default collation takes "a" and "A" for one id.
	MySQL: "CREATE TABLE IF NOT EXISTS %s (grp VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, id VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, handled_at BIGINT NOT NULL, PRIMARY KEY (grp, id))",
}

var insert = map[Dialect]string{
	SQLite:     "INSERT INTO %s (grp, id, handled_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
	PostgreSQL: "INSERT INTO %s (grp, id, handled_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
	// IGNORE would cut what is too long, too, but nothing is: see text. ON DUPLICATE
	// KEY UPDATE counts the row as changed or not as the connection was opened.
	MySQL: "INSERT IGNORE INTO %s (grp, id, handled_at) VALUES (?, ?, ?)",
}

var forget = map[Dialect]string{
	SQLite:     "DELETE FROM %s WHERE handled_at < ?",
	PostgreSQL: "DELETE FROM %s WHERE handled_at < $1",
	MySQL:      "DELETE FROM %s WHERE handled_at < ?",
}

// Schema is the statement that makes the table, if it is not there. Run it with
// your migrations, or at the start of the program. handled_at is in seconds
// since 1970. It panics if Name or Dialect is not one that is possible.
func (t Table) Schema() string {
	s, err := t.statement(create)
	if err != nil {
		panic(err)
	}
	return s
}

func (t Table) statement(of map[Dialect]string) (string, error) {
	name := t.Name
	if name == "" {
		name = DefaultName
	}
	odd := func(c rune) bool {
		return c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}
	if i := strings.IndexFunc(name, odd); i >= 0 {
		return "", fmt.Errorf("idempotent: Table.Name %q: %q is not possible: use letters, digits, _ and . for the schema", name, name[i:i+1])
	}
	s, ok := of[t.Dialect]
	if !ok {
		return "", fmt.Errorf("idempotent: Table.Dialect %d is not known: use SQLite, PostgreSQL or MySQL", t.Dialect)
	}
	return fmt.Sprintf(s, name), nil
}

// First notes in tx that the group handles the event of that id, and reports
// whether it is the first to do so. The answer is final once tx is committed. A
// transaction of another process that has noted the same id and is still open
// is waited for, as long as ctx and the database allow.
//
// It is what [Table.Handler] is made of, for handlers that begin their
// transaction themselves. After an error tx can only be rolled back.
func (t Table) First(ctx context.Context, tx *sql.Tx, group, id string) (bool, error) {
	s, err := t.statement(insert)
	if err != nil {
		return false, err
	}
	if group == "" || id == "" {
		return false, errors.New("idempotent: the group or the id of the event is empty: give the group that the subscription has, and an id to events that you make")
	}
	r, err := tx.ExecContext(ctx, s, text(group), text(id), time.Now().Unix())
	if err != nil {
		return false, t.failed("note", id, err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return false, t.failed("note", id, err)
	}
	return n > 0, nil
}

// Handler wraps a handler that writes by the transaction that it is given. Each
// call begins one, notes the event for the group, and commits; an event that
// was noted before is not handled, and counts as handled. An error or a panic of
// h, or of the database, rolls back and is the handler's: the event is retried
// as [tidings.Retry] says. h neither commits nor rolls back.
//
// A commit whose answer is lost is an error, though it may have happened: the
// next attempt finds out, by the id.
func (t Table) Handler(db *sql.DB, group string, h func(ctx context.Context, tx *sql.Tx, e tidings.Event) error) tidings.Handler {
	return func(ctx context.Context, e tidings.Event) (err error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return t.failed("begin for", e.ID(), err)
		}
		defer func() {
			// Also after a panic. After Commit it does nothing.
			if rerr := tx.Rollback(); err != nil && rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
				err = errors.Join(err, rerr)
			}
		}()
		first, err := t.First(ctx, tx, group, e.ID())
		if err != nil || !first {
			return err
		}
		if err := h(ctx, tx, e); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return t.failed("commit", e.ID(), err)
		}
		return nil
	}
}

// Forget removes what was noted longer ago than that, and returns how much it
// was. An event that is delivered again later than that is handled again: keep
// ids for longer than a group can be away, than a dead letter may wait to be
// redriven, and than events are replayed from.
func (t Table) Forget(ctx context.Context, db *sql.DB, age time.Duration) (int64, error) {
	s, err := t.statement(forget)
	if err != nil {
		return 0, err
	}
	r, err := db.ExecContext(ctx, s, time.Now().Add(-age).Unix())
	if err != nil {
		return 0, t.failed("forget", "old events", err)
	}
	return r.RowsAffected()
}

func (t Table) failed(what, id string, err error) error {
	name := t.Name
	if name == "" {
		name = DefaultName
	}
	return fmt.Errorf("idempotent: %s %s in table %s: %w", what, id, name, err)
}

// text is s as the table can hold it in every dialect: plain as it is, anything
// else by its hash, so that no database cuts, folds or trims two ids to one.
func text(s string) string {
	plain := len(s) <= maxText && !strings.HasPrefix(s, "sha256:") &&
		strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) < 0
	if plain {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}
