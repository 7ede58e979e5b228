package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/internal/testkit"
)

// envChild makes the test binary a process of the group: it names what the handler
// does.
const envChild, envChildURL = "TIDINGS_TEST_CHILD", "TIDINGS_TEST_URL"

// child is the process. It ends when its parent closes its input, or as its handler
// wants.
func init() {
	what := os.Getenv(envChild)
	if what == "" {
		return
	}
	b, err := tidings.Open(ctx, os.Getenv(envChildURL), tidings.Options{App: "billing"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, err = b.Subscribe(ctx, "order.*", func(context.Context, tidings.Event) error {
		if what == "die" {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it does not return
		}
		return tidings.Permanent(errors.New("no"))
	}, &tidings.SubscribeOptions{Durable: true, Retry: tidings.Retry{Deaths: 1}})
	if err == nil {
		_, err = b.Subscribe(ctx, "tidings.dead", func(_ context.Context, e tidings.Event) error {
			if e.Payload().(tidings.DeadLettered).Err == nil {
				os.Exit(0)
			}
			return nil
		}, &tidings.SubscribeOptions{Inline: true})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(3)
}

// start runs one more process of the group; its input ends with the test.
func start(t *testing.T, what, url string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), envChild+"="+what, envChildURL+"="+url)
	c.Stdout, c.Stderr = t.Output(), t.Output()
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// A process that is killed after the letter was stored and before the original is
// terminated leaves exactly one letter: the next process of the group gives the
// event up again, and finds it there. What is to happen in between is held up by the
// broker, which refuses the first process every acknowledgement.
func TestKilledBetweenLetterAndTermination(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "mute", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.ACK.>"}}}},
			{Username: "all", Password: "p"},
		}
	}).URL()
	as := func(user string) string { return strings.Replace(url, "nats://", "nats://"+user+":p@", 1) }
	shop := process(t, as("all"), "shop", tidings.Options{})
	if err := shop.Publish(deadline(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	store := letters(t, as("all"))
	first := start(t, "refuse", as("mute"))
	testkit.Until(t, 20*time.Second, func() bool { return len(list(t, store, deadletter.Selection{})) == 1 })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	before := list(t, store, deadletter.Selection{})[0]
	if err := start(t, "refuse", as("all")).Wait(); err != nil { // ends once the event is dead to it
		t.Fatal(err)
	}
	after := list(t, store, deadletter.Selection{})
	if len(after) != 1 || after[0].ID != before.ID || after[0].Instance != before.Instance {
		t.Errorf("%d letters, the first %+v, was %+v", len(after), after[0], before)
	}
	// It was terminated: nothing comes any more but what is new.
	got := make(chan tidings.Event, 2)
	subscribe(t, process(t, as("all"), "billing", tidings.Options{}), "order.*", func(_ context.Context, e tidings.Event) error { got <- e; return nil },
		&tidings.SubscribeOptions{Durable: true})
	if err := shop.Publish(deadline(t), "order.last", 2); err != nil {
		t.Fatal(err)
	}
	if e := soonest(t, got); e.Topic() != "order.last" {
		t.Errorf("%v came again", e)
	}
}

// An event that kills its process whenever it is handled ends as a dead letter, and
// what comes after it is handled.
func TestAnEventThatKillsItsProcess(t *testing.T) {
	t.Parallel()
	url := testkit.Server(t).URL()
	shop := process(t, url, "shop", tidings.Options{})
	if err := shop.Publish(deadline(t), "order.placed", 1); err != nil {
		t.Fatal(err)
	}
	deaths := 0
	for ; deaths < 12; deaths++ {
		if start(t, "die", url).Wait() == nil {
			break // it was told of the dead letter
		}
	}
	if deaths != 6 { // five that are not looked at closely, and Retry.Deaths
		t.Errorf("%d processes died", deaths)
	}
	l := list(t, letters(t, url), deadletter.Selection{})
	if len(l) != 1 || l[0].Attempts != 0 || l[0].Deliveries != deaths+1 || !strings.Contains(l[0].Reason, "process died") {
		t.Fatalf("%d letters: %+v", len(l), l)
	}
}
