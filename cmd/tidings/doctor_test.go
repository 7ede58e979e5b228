//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
)

// runServer is nats-server, for scripts: nats-server CONF. It says where it is, and ends
// with TERM.
func runServer() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	o, err := server.ProcessConfigFile(os.Args[1])
	fail(err)
	o.NoSigs, o.NoLog = true, true
	s, err := server.NewServer(o)
	fail(err)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	s.Start()
	if !s.ReadyForConnections(scriptPatience) {
		fail(fmt.Errorf("not ready after %v", scriptPatience))
	}
	fmt.Println("at", s.Addr())
	if m := s.MonitorAddr(); m != nil {
		fmt.Println("monitor", m)
	}
	fmt.Println("ready")
	<-end
	s.Shutdown()
	s.WaitForShutdown()
}

// serverat FILE takes ADDR, and MONITOR if there is one, from what a nats-server has
// printed.
func serverAt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serverat FILE")
	}
	await(ts, false, []string{args[0], "^ready"})
	var addr, monitor string
	text := ts.ReadFile(args[0])
	_, err := fmt.Sscanf(text, "at %s\nmonitor %s", &addr, &monitor)
	if addr == "" {
		ts.Check(err)
	}
	ts.Setenv("ADDR", addr)
	ts.Setenv("MONITOR", monitor)
}

// jetStream is for scripts that change what the app has made.
func jetStream(ts *testscript.TestScript) jetstream.JetStream {
	nc, err := nats.Connect(ts.Getenv("TIDINGS_URL"))
	ts.Check(err)
	ts.Defer(nc.Close)
	js, err := jetstream.New(nc)
	ts.Check(err)
	return js
}

// stream NAME discard-old has it forget what is old.
func changeStream(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || args[1] != "discard-old" {
		ts.Fatalf("usage: stream NAME discard-old")
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	js := jetStream(ts)
	s, err := js.Stream(ctx, args[0])
	ts.Check(err)
	cfg := s.CachedInfo().Config
	cfg.Discard, cfg.MaxAge = jetstream.DiscardOld, time.Hour
	_, err = js.UpdateStream(ctx, cfg)
	ts.Check(err)
}

// pause GROUP pauses its consumers in the stream shop for an hour.
func pause(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: pause GROUP")
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	s, err := jetStream(ts).Stream(ctx, "shop")
	ts.Check(err)
	names := s.ConsumerNames(ctx)
	for name := range names.Name() {
		if strings.HasPrefix(name, args[0]+"-") {
			_, err := s.PauseConsumer(ctx, name, time.Now().Add(time.Hour))
			ts.Check(err)
		}
	}
	ts.Check(names.Err())
}

// userof NAME sets TIDINGS_URL to that of another user of the hub.
func userOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: userof NAME")
	}
	before, _, ok := strings.Cut(ts.Getenv("TIDINGS_URL"), "/users/")
	if !ok {
		ts.Fatalf("the hub has no users: %s", ts.Getenv("TIDINGS_URL"))
	}
	ts.Setenv("TIDINGS_URL", before+"/users/"+args[0])
}
