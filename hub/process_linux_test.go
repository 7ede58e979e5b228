package hub_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/hub"
)

// What a process of these tests is to be, and on which directory.
const (
	roleVar = "TIDINGS_HUB_TEST_ROLE"
	dirVar  = "TIDINGS_HUB_TEST_DIR"
)

// It is another program than a test if the environment says so.
func init() {
	role := os.Getenv(roleVar)
	if role == "" {
		return
	}
	run := map[string]func(dir string) error{"hub": runHub, "default": runDefault, "app": runApp, "idle": runIdle, "full": runFull}[role]
	if err := run(os.Getenv(dirVar)); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// as is the environment of a process with a role.
func as(role, dir string) []string { return []string{roleVar + "=" + role, dirVar + "=" + dir} }

// runHub is a hub until it is told to end.
func runHub(dir string) error {
	h, err := hub.Start(context.Background(), hub.Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quietly()})
	if err != nil {
		return err
	}
	fmt.Println("pid", os.Getpid())
	fmt.Println("url", h.URL())
	untilTold()
	_, err = h.Stop(context.Background())
	return err
}

// runDefault is a nats-server that syncs when it does by default.
func runDefault(dir string) error {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return err
	}
	srv.Start()
	if !srv.ReadyForConnections(patience) {
		return fmt.Errorf("not ready in %v", patience)
	}
	fmt.Println("pid", os.Getpid())
	fmt.Println("url", srv.ClientURL())
	untilTold()
	srv.Shutdown()
	srv.WaitForShutdown()
	return nil
}

func untilTold() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	<-told
}

// token reads the file that a URL names.
func token(t testing.TB, url string) (server, secret string) {
	t.Helper()
	server, file, ok := strings.Cut(url, "?token-file=")
	if !ok {
		return server, ""
	}
	b, err := os.ReadFile(file)
	must(t, err)
	return server, strings.TrimSpace(string(b))
}
