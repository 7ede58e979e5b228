package drill

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/drill/witness"
)

// nodes is how many hubs make a cluster, and how many copies streams have.
const nodes = 3

// A node is one of them: a process, and those that follow it when it is killed.
type node struct {
	*proc
	name, conf, addr string
	life             int
}

// elections knows when nodes have last elected leaders: they tell whoever listens.
type elections struct {
	mu   sync.Mutex
	last map[string]Mono // by "STREAM", or "STREAM.CONSUMER"
}

// elections listens until the connection ends. The node that it leads to may be killed:
// nobody is elected before it leads to another.
func (b broker) elections() (*elections, *nats.Conn, error) {
	e := &elections{last: map[string]Mono{}}
	nc, err := b.connect(nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		return nil, nil, err
	}
	_, err = nc.Subscribe("$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>", func(m *nats.Msg) {
		at := witness.Now()
		_, of, _ := strings.Cut(m.Subject, ".LEADER_ELECTED.")
		e.mu.Lock()
		defer e.mu.Unlock()
		e.last[of] = at
	})
	if err = errors.Join(err, nc.Flush()); err != nil {
		nc.Close()
	}
	return e, nc, err
}

// of is when, after an instant, the last leader of a stream and its consumers was elected;
// 0 if none was.
func (e *elections) of(stream string, after Mono) (last Mono) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for of, at := range e.last {
		if at > after && (of == stream || strings.HasPrefix(of, stream+".")) {
			last = max(last, at)
		}
	}
	return last
}

// cluster kills one node after the other, and deploys.
func (d *drill) cluster() error {
	if err := d.start(); err != nil {
		return err
	}
	elected, nc, err := d.hub.elections()
	if err != nil {
		return err
	}
	defer nc.Close()
	d.ev.WantDeploys = 1
	var turns []turn
	for _, n := range d.nodes {
		turns = append(turns, turn{"kill -9 of " + n.name, Nodes, func() error { return d.killNode(n, elected) }})
	}
	return d.perform(d.For/(nodes+3), append(turns, turn{"deploy 1", Deploys, d.deployUSR2})...)
}

// startCluster starts all nodes, with one token for all.
func (d *drill) startCluster() error {
	var addrs, routes []string
	for range nodes {
		client, err1 := freeAddr()
		route, err2 := freeAddr()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		addrs, routes = append(addrs, client), append(routes, route)
	}
	token := rand.Text()
	for i := range nodes {
		n := &node{name: fmt.Sprintf("node-%d", i+1), addr: addrs[i]}
		n.conf = filepath.Join(d.Dir, n.name+".conf")
		text := fmt.Sprintf("server_name: %s\ncluster { name: drill, listen: %q, routes: [nats://%s] }\n", n.name, routes[i], strings.Join(routes, ", nats://"))
		if err := errors.Join(os.Mkdir(d.nodeDir(n), 0o700), os.WriteFile(filepath.Join(d.nodeDir(n), "token"), []byte(token), 0o600),
			os.WriteFile(n.conf, []byte(text), 0o600)); err != nil {
			return err
		}
		d.nodes = append(d.nodes, n)
		if err := d.launchNode(n); err != nil {
			return err
		}
	}
	d.hub.url = fmt.Sprintf("nats://%s?token-file=%s&replicas=%d", strings.Join(addrs, ","), filepath.Join(d.nodeDir(d.nodes[0]), "token"), nodes)
	return d.listening(d.nodes...)
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (d *drill) nodeDir(n *node) string { return filepath.Join(d.Dir, n.name) }

func (d *drill) launchNode(n *node) (err error) {
	n.life++
	n.proc, err = d.launch(fmt.Sprintf("%s-%d", n.name, n.life), nil,
		append(slices.Clone(d.Hub), "--dir", d.nodeDir(n), "--listen", n.addr, "--monitor", "127.0.0.1:0", "--config", n.conf))
	return err
}

// listening waits until nodes let clients in.
func (d *drill) listening(started ...*node) error {
	for _, n := range started {
		if err := d.until(patience, func() bool { _, ok := n.says("ready"); return ok || n.exited() }); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		if n.exited() {
			return n.died()
		}
	}
	d.hub.monitors = nil
	for _, n := range d.nodes {
		if m, ok := n.says("monitor "); ok && !n.exited() {
			d.hub.monitors = append(d.hub.monitors, m)
		}
	}
	return nil
}

// killNode kills a node, waits until the others serve all clients, starts it again, and
// waits until it has what they have: without that the next one would be one too many.
func (d *drill) killNode(n *node, elected *elections) error {
	if err := d.until(2*patience, func() bool { return d.hub.whole(d.ctx) }); err != nil {
		return fmt.Errorf("the cluster is not whole: %w", err)
	}
	o := &Outage{Node: n.name, Killed: true, PID: n.pid(), Before: d.hub.clients()}
	var err error
	if o.Old, _, err = d.hub.state(d.ctx, d.topics()); err != nil {
		return err
	}
	o.Down = witness.Now()
	if err := n.stop(syscall.SIGKILL, patience); err != nil {
		return err
	}
	o.Gone = n.exit.At
	if err := d.listening(); err != nil { // the others
		return err
	}
	if err := d.until(2*patience, func() bool { _, _, err := d.hub.state(d.ctx, d.topics()); return err == nil }); err != nil {
		return fmt.Errorf("no other node has taken over from %s: %w", n.name, err)
	}
	o.Up = witness.Now()
	if err := d.hubBack(o); err != nil {
		return err
	}
	if err := d.launchNode(n); err != nil {
		return err
	}
	if err := d.listening(n); err != nil {
		return err
	}
	err = d.until(2*patience, func() bool { return d.hub.whole(d.ctx) })
	d.ev.Outages[len(d.ev.Outages)-1].Elected = elected.of(o.Old.Name, o.Down)
	return err
}

// whole reports whether every stream and every consumer has a leader and all its copies.
func (b broker) whole(ctx context.Context) bool {
	ok := true
	err := b.with(func(js jetstream.JetStream) error {
		streams := js.ListStreams(ctx)
		for s := range streams.Info() {
			ok = ok && complete(s.Cluster, s.Config.Replicas)
			st, err := js.Stream(ctx, s.Config.Name)
			if err != nil {
				return err
			}
			cons := st.ListConsumers(ctx)
			for c := range cons.Info() {
				ok = ok && complete(c.Cluster, s.Config.Replicas)
			}
			if err := cons.Err(); err != nil {
				return err
			}
		}
		return streams.Err()
	})
	return ok && err == nil
}

func complete(c *jetstream.ClusterInfo, copies int) bool {
	return c != nil && c.Leader != "" && len(c.Replicas) == copies-1 &&
		!slices.ContainsFunc(c.Replicas, func(p *jetstream.PeerInfo) bool { return p.Offline || !p.Current })
}
