//go:build unix

package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/internal/loop"
	"github.com/tidings-go/tidings/internal/testkit"
	"github.com/tidings-go/tidings/supervisor"
	"github.com/tidings-go/tidings/worker"
	"github.com/tidings-go/tidings/worker/httpworker"
)

// httpMain is a worker that answers a request with its pid and the request's body;
// at /gate… only once somebody has opened and closed dir/gate….
func httpMain(dir string) int {
	bus, err := tidings.New(tidings.Options{App: "http"})
	if err != nil {
		panic(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/gate") {
			if _, err := os.ReadFile(filepath.Join(dir, r.URL.Path)); err != nil {
				panic(err)
			}
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d %s", os.Getpid(), body)
	})}
	if err := httpworker.Run(context.Background(), srv, httpworker.Options{Options: worker.Options{Bus: bus}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A browser makes requests one after the other, GET and POST in turn, and counts
// those that are not answered, or wrongly.
type browser struct {
	loop   *loop.Loop
	client *http.Client
	served map[string]int // by pid
	failed []error
	total  *atomic.Int64 // of all browsers
}

// browse makes requests until it is stopped or, at a server that ends, until a
// new connection comes to nothing.
func browse(url string, keepAlive bool, total *atomic.Int64) *browser {
	b := &browser{served: map[string]int{}, total: total, client: &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: !keepAlive}}}
	b.loop = loop.Go(func(ctx context.Context) {
		defer b.client.CloseIdleConnections()
		for n := 0; ctx.Err() == nil; n++ {
			body := ""
			if n%2 == 1 {
				body = fmt.Sprint("order ", n)
			}
			pid, reused, err := ask(b.client, url, body)
			if err == nil {
				b.served[pid]++
				b.total.Add(1)
				continue
			}
			b.failed = append(b.failed, fmt.Errorf("request %d (body %q, connection reused: %v): %w", n, body, reused, err))
			if !reused && errors.Is(err, syscall.ECONNREFUSED) {
				return
			}
		}
	})
	return b
}

// ask makes one request: a POST if there is a body.
func ask(c *http.Client, url, body string) (pid string, reused bool, err error) {
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), method, url, strings.NewReader(body))
	if err != nil {
		return "", false, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", reused, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", reused, err
	}
	pid, echo, _ := strings.Cut(string(text), " ")
	if resp.StatusCode != http.StatusOK || echo != body {
		return "", reused, fmt.Errorf("status %d, %q", resp.StatusCode, text)
	}
	return pid, reused, nil
}

// "No request fails over HUP and USR2", GET or POST, on kept connections or new ones.
func TestHTTPUnderLoad(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"web=tcp://" + addr}})
	r.mode("http")
	startReady(r)
	var browsers []*browser
	var total atomic.Int64
	for i := range 8 {
		b := browse("http://"+addr+"/", i%4 != 0, &total)
		defer b.loop.StopAndWait()
		browsers = append(browsers, b)
	}
	generations := 0
	browseOn := func() { // at each generation
		t.Helper()
		generations++
		enough := total.Load() + 400
		testkit.Until(t, patience, func() bool { return total.Load() >= enough })
	}
	browseOn()
	for range 5 {
		r.signal(syscall.SIGHUP)
		r.awaitKind(supervisor.EventGenerationReady)
		browseOn()
	}
	r.signal(syscall.SIGUSR2)
	next := r.awaitKind(supervisor.EventReexecStarted).PID
	r.awaitKind(supervisor.EventGenerationReady)
	r.signal(syscall.SIGQUIT)
	r.awaitExit(0)
	browseOn()

	pids := map[string]bool{}
	for _, b := range browsers {
		b.loop.StopAndWait()
		for pid := range b.served {
			pids[pid] = true
		}
		for _, err := range b.failed {
			t.Error(err)
		}
	}
	if len(pids) < generations {
		t.Errorf("served by %d workers of %d generations", len(pids), generations)
	}
	t.Logf("%d requests, %d workers", total.Load(), len(pids))
	check(t, syscall.Kill(next, syscall.SIGQUIT))
	r.await("the stop", func(e supervisor.Event) bool { return e.Event == supervisor.EventStopped && e.Master == next })
}

// At the last QUIT all that was accepted is answered: what is under way, and what
// comes on connections that are kept. New connections are refused at once.
func TestHTTPAtTheLastQuit(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	r := newRig(t, testConfig{Workers: 2, Listen: []string{"web=tcp://" + addr}})
	r.mode("http")
	startReady(r)
	kept := make([]*http.Client, 8)
	for i := range kept {
		kept[i] = &http.Client{Timeout: patience}
		kept[i].Transport = &http.Transport{}
		_, _, err := ask(kept[i], "http://"+addr+"/", "")
		check(t, err)
	}
	// Half of them have a request under way when QUIT comes, the others do not.
	var under sync.WaitGroup
	var gates []*os.File
	for i, c := range kept[:4] {
		gate := fmt.Sprint("/gate", i)
		check(t, syscall.Mkfifo(r.dir+gate, 0o600))
		under.Go(func() {
			if _, _, err := ask(c, "http://"+addr+gate, fmt.Sprint("under way ", i)); err != nil {
				t.Error(err)
			}
		})
		f, err := os.OpenFile(r.dir+gate, os.O_WRONLY, 0) // once the handler opens it
		check(t, err)
		gates = append(gates, f)
	}
	r.signal(syscall.SIGQUIT)
	for range 2 {
		r.awaitKind(supervisor.EventWorkerQuitSent)
	}
	awaitRefusal(t, "tcp", addr)
	for i, c := range kept[4:] {
		if _, reused, err := ask(c, "http://"+addr+"/", fmt.Sprint("kept ", i)); err != nil || !reused {
			t.Errorf("on a connection that was kept (reused: %v): %v", reused, err)
		}
	}
	for _, gate := range gates {
		gate.Close()
	}
	under.Wait()
	for _, c := range kept { // the worker need not wait for more
		c.CloseIdleConnections()
	}
	r.awaitExit(0)
}

// awaitRefusal waits until nobody listens any more.
func awaitRefusal(t *testing.T, network, addr string) {
	t.Helper()
	testkit.Until(t, patience, func() bool {
		conn, err := net.Dial(network, addr)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
	})
}
