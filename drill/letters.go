package drill

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/drill/witness"
	_ "github.com/tidings-go/tidings/natsbus" // makes nats:// URLs known
)

const letterPatience = 10 * time.Second

// withLetters opens the broker's dead letters for a while.
func (d *drill) withLetters(do func(context.Context, *deadletter.Store) error) error {
	ctx, cancel := context.WithTimeout(d.ctx, letterPatience)
	defer cancel()
	store, err := deadletter.Open(ctx, d.hub.url, deadletter.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	return do(ctx, store)
}

// deadLetters are all that the broker has.
func (d *drill) deadLetters() (out []Letter, err error) {
	err = d.withLetters(func(ctx context.Context, store *deadletter.Store) error {
		for l, err := range store.List(ctx, deadletter.Selection{}) {
			if err != nil {
				return err
			}
			var event struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal(l.Event.Data, &event); err != nil {
				return fmt.Errorf("dead letter %s: %w", l.ID, err)
			}
			out = append(out, Letter{Topic: l.Event.Topic, ID: event.ID, Pattern: l.Pattern, Group: l.Group,
				Reason: l.Reason, Attempts: l.Attempts, Deliveries: l.Deliveries})
		}
		return nil
	})
	return out, err
}

// redrive mends what was planted to die, and gives it to its groups again.
func (d *drill) redrive() (err error) {
	if d.ev.Letters, err = d.deadLetters(); err != nil || len(d.ev.Letters) == 0 {
		return err
	}
	if err := witness.Mend(d.Dir); err != nil {
		return err
	}
	d.ev.Redrive = &Redrive{At: witness.Now()}
	err = d.withLetters(func(ctx context.Context, store *deadletter.Store) error {
		d.ev.Redrive.Done, err = store.Redrive(ctx, deadletter.Selection{All: true}, deadletter.Action{})
		return err
	})
	if err != nil {
		return err
	}
	if err := d.settled(); err != nil {
		return err
	}
	d.ev.Redrive.Left, err = d.deadLetters()
	return err
}
