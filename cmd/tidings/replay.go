package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/tidings-go/tidings/replay"
)

type replayCmd struct {
	URL    string `name:"url" env:"TIDINGS_URL" help:"Where the broker is, as for the applications: nats://HOST:PORT?token-file=PATH."`
	Prefix string `env:"TIDINGS_PREFIX" help:"The applications' prefix, if they have one."`

	Group        string `required:"" help:"The durable group that gets the events."`
	Subscription string `help:"The pattern it has subscribed to, where several have what is asked for."`
	Pattern      string `help:"Only topics that match this pattern, like order.*."`
	From         string `help:"Where to begin: start, a sequence of the stream, a time (2006-01-02T15:04:05Z), or a duration back from now (2h)."`
	Until        string `help:"Only what was stored before: a time, or a duration back from now."`
	Resume       bool   `help:"Go on with the last replay, which was interrupted."`
	DryRun       bool   `name:"dry-run" help:"Only count what would be replayed."`
	JSON         bool   `name:"json" help:"Print the outcome as JSON."`
}

// Help is shown below the flags.
func (replayCmd) Help() string {
	return `The group gets stored events that it has handled before once more, in their
order, as new ones; no other group and no live subscriber sees them. What it has
not handled yet is not given twice, and new events come to it meanwhile. How far
it is stands on standard error. It waits for the group when that has some hundreds
of them to handle; interrupted or killed, --resume goes on exactly there.

Exit status: 0 done, also when there was nothing to do; 1 failed or interrupted;
64 wrong usage.`
}

// Validate refuses to guess.
func (c replayCmd) Validate() error {
	switch {
	case c.Resume && (c.From != "" || c.Until != "" || c.Pattern != ""):
		return hinted{errors.New("--resume goes on as the replay was begun"), "leave out --from, --until and --pattern"}
	case !c.Resume && c.From == "":
		return hinted{errors.New("nothing says where to begin"), "--from=start, --from=SEQUENCE, --from=2h, --from=2006-01-02T15:04:05Z, or --resume"}
	}
	_, err := c.request(time.Now())
	return err
}

func (c replayCmd) request(now time.Time) (q replay.Request, err error) {
	q = replay.Request{Group: c.Group, Subscription: c.Subscription, Topics: c.Pattern, Resume: c.Resume, DryRun: c.DryRun}
	if n, bad := strconv.ParseUint(c.From, 10, 64); bad == nil {
		q.From = n
	} else if c.From != "" && c.From != "start" {
		if q.Since, err = moment(c.From, now); err != nil {
			return q, hinted{fmt.Errorf("--from=%s is no sequence, time or duration", c.From), "start, 1200, 2h, or 2006-01-02T15:04:05Z"}
		}
	}
	if c.Until != "" {
		if q.Until, err = moment(c.Until, now); err != nil {
			return q, hinted{fmt.Errorf("--until=%s is neither a duration nor a time", c.Until), "2h, or 2006-01-02T15:04:05Z"}
		}
	}
	return q, nil
}

// moment reads a time, or a duration back from now.
func moment(s string, now time.Time) (time.Time, error) {
	if back, err := time.ParseDuration(s); err == nil {
		return now.Add(-back), nil
	}
	return time.Parse(time.RFC3339, s)
}

// Run replays.
func (c replayCmd) Run(ctx context.Context) error {
	if c.URL == "" {
		return errNoBroker
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := replay.Open(ctx, c.URL, replay.Options{Prefix: c.Prefix})
	if err != nil {
		return err
	}
	q, err := c.request(time.Now())
	if err != nil {
		return errors.Join(err, r.Close())
	}
	q.Progress = teller(os.Stderr, time.Second)
	done, err := r.Run(ctx, q)
	return errors.Join(c.outcome(done, err, ctx.Err() != nil), r.Close())
}

// outcome prints what came of it, and how to go on.
func (c replayCmd) outcome(done replay.Progress, err error, interrupted bool) error {
	if c.JSON {
		if bad := json.NewEncoder(os.Stdout).Encode(done); bad != nil {
			return errors.Join(err, bad)
		}
	}
	switch {
	case err == nil && c.JSON:
		return nil
	case err == nil:
		sayReplayed(os.Stdout, done, c.DryRun)
		return nil
	case interrupted && done.Given == 0 && !c.Resume:
		return errors.New("interrupted before anything was replayed")
	case done.Given == 0 && !c.Resume:
		return err
	case interrupted:
		err = fmt.Errorf("interrupted: %d of %d events were replayed, all before sequence %d of stream %s", done.Given, done.Events, done.Next, done.Stream)
	default:
		err = fmt.Errorf("%w; %d of %d events were replayed, all before sequence %d of stream %s", err, done.Given, done.Events, done.Next, done.Stream)
	}
	return hinted{err, fmt.Sprintf("go on with: tidings replay --group=%s --subscription='%s' --resume", c.Group, done.Subscription)}
}

func sayReplayed(w io.Writer, done replay.Progress, dry bool) {
	to := fmt.Sprintf("group %s (%s)", done.Group, done.Subscription)
	switch {
	case done.Events == 0:
		fmt.Fprintf(w, "nothing to replay to %s: no such event is stored that it has handled (up to sequence %d of stream %s)\n", to, done.End, done.Stream)
	case dry:
		fmt.Fprintf(w, "%d events would be replayed to %s: sequences %d to %d of stream %s\n", done.Events, to, done.First, done.End, done.Stream)
	default:
		fmt.Fprintf(w, "%d events replayed to %s: sequences %d to %d of stream %s\n", done.Given, to, done.First, done.End, done.Stream)
	}
	if done.Gone > 0 {
		fmt.Fprintf(w, "%d were purged or expired before they could be given\n", done.Gone)
	}
}

// teller prints progress, not more often than every so often.
func teller(w io.Writer, every time.Duration) func(replay.Progress) {
	var at time.Time
	return func(p replay.Progress) {
		if time.Since(at) < every {
			return
		}
		at = time.Now()
		fmt.Fprintf(w, "replayed %d of %d, up to sequence %d", p.Given, p.Events, p.Next-1)
		if p.Waits != "" {
			fmt.Fprintf(w, "; waiting: %s", p.Waits)
		}
		fmt.Fprintln(w)
	}
}
