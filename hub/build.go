package hub

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/internal/mutant"
)

// What a server in a cluster takes to stop: its streams get other leaders first, and
// its clients go to other servers one by one.
const (
	lameDuckGrace = 2 * time.Second
	lameDuck      = 8 * time.Second
)

// built is what the server is given, from options and files as they are now.
type built struct {
	opts    *server.Options
	users   []*declared       // nil: there is no users file
	secrets map[string]string // of users, by name; and the token as ""
	foreign bool              // Config says who may do what, and only it knows
	clear   []listener        // reachable from other machines, without TLS
}

// build reads all files. It makes secrets that are missing, and nothing else.
func (c config) build(d *dir) (*built, error) {
	o, err := c.fromFile()
	if err != nil {
		return nil, err
	}
	b := &built{opts: o, secrets: map[string]string{}}
	if err := errors.Join(c.place(o), c.keep(o, d), c.limit(o)); err != nil {
		return nil, err
	}
	if err := c.admit(b, d); err != nil {
		return nil, err
	}
	if b.clear, err = c.checkListeners(o); err != nil {
		return nil, err
	}
	o.NoSigs = true // signals are the program's, not the broker's
	o.DisableJetStreamBanner = true
	o.NoLog = true // the log is ours, and stays so over a reload
	if o.ServerName == "" {
		o.ServerName = "tidings-hub"
		if name, err := os.Hostname(); err == nil {
			o.ServerName += "-" + name
		}
	}
	if o.LameDuckDuration == 0 && o.LameDuckGracePeriod == 0 {
		o.LameDuckDuration, o.LameDuckGracePeriod = lameDuck, lameDuckGrace
	}
	return b, nil
}

// fromFile reads Config; what it does not say is zero.
func (c config) fromFile() (*server.Options, error) {
	o := &server.Options{}
	if c.Config == "" {
		return o, nil
	}
	err := o.ProcessConfigFile(c.Config)
	if err == nil {
		return o, nil
	}
	// Warnings alone come as an error, too.
	all, ok := err.(interface {
		Errors() []error
		Warnings() []error
	})
	if !ok || len(all.Errors()) > 0 {
		return nil, fmt.Errorf("cannot use the configuration %s: %s", c.Config, strings.TrimSpace(err.Error()))
	}
	for _, w := range all.Warnings() {
		c.Logger.Warn("hub: "+w.Error(), "config", c.Config)
	}
	return o, nil
}

// twice is the error of what an option and the file both say.
func (c config) twice(field, key string) error {
	return fmt.Errorf("both Options.%s and %s in %s are set: say it in one place", field, key, c.Config)
}

// place says where the server listens, and what clients speak there.
func (c config) place(o *server.Options) error {
	if c.host != "" || c.Addr != "" {
		if o.Host != "" || o.Port != 0 {
			return c.twice("Addr", "listen, host or port")
		}
		o.Host, o.Port = c.host, c.port
	}
	if o.Host == "" && !c.Expose {
		o.Host = "127.0.0.1" // nats-server would listen on all interfaces
	}
	if o.Port == 0 && c.Addr == "" {
		o.Port = server.DEFAULT_PORT
	}
	if o.Port == server.RANDOM_PORT {
		o.Port = 0
	}
	if c.tls != nil {
		if o.TLSConfig != nil {
			return c.twice("TLS", "tls")
		}
		o.TLSConfig = c.tls
		o.TLSVerify = verified(c.tls)
	}
	if c.Monitor != "" {
		if o.HTTPPort != 0 || o.HTTPSPort != 0 || o.HTTPHost != "" {
			return c.twice("Monitor", "http or https")
		}
		o.HTTPHost, o.HTTPPort = c.monitor.host, cmp.Or(c.monitor.port, server.RANDOM_PORT)
	}
	if o.HTTPHost == "" {
		o.HTTPHost = "127.0.0.1"
	}
	return nil
}

// mutantNotSynced is a defect that the drill must catch by name: see package mutant.
const mutantNotSynced = "hub-not-synced"

// keep says where and how events are stored.
func (c config) keep(o *server.Options, d *dir) error {
	if o.StoreDir != "" && filepath.Clean(o.StoreDir) != d.store() {
		return fmt.Errorf("store_dir in %s is %s: leave it out, the store is in %s, where the hub's lock keeps a second server away", c.Config, o.StoreDir, d.store())
	}
	o.JetStream, o.StoreDir = true, d.store()
	if o.SyncInterval == 0 && !o.SyncAlways {
		o.SyncAlways = !mutant.On(mutantNotSynced)
	}
	return nil
}

func (c config) limit(o *server.Options) error {
	for _, l := range []struct {
		field, key   string
		option, file int64
	}{
		{"MaxStore", "jetstream max_file_store", c.MaxStore, o.JetStreamMaxStore},
		{"MaxMemory", "jetstream max_memory_store", c.MaxMemory, o.JetStreamMaxMemory},
		{"MaxPayload", "max_payload", c.MaxPayload, int64(o.MaxPayload)},
		{"MaxConnections", "max_connections", int64(c.MaxConnections), int64(o.MaxConn)},
	} {
		if l.option != 0 && l.file != 0 {
			return c.twice(l.field, l.key)
		}
	}
	o.JetStreamMaxStore = cmp.Or(o.JetStreamMaxStore, c.MaxStore, DefaultMaxStore)
	o.JetStreamMaxMemory = cmp.Or(o.JetStreamMaxMemory, c.MaxMemory, DefaultMaxMemory)
	o.MaxPayload = cmp.Or(o.MaxPayload, int32(c.MaxPayload))
	o.MaxConn = cmp.Or(o.MaxConn, c.MaxConnections)
	return nil
}

// admit says who may connect, and do what.
func (c config) admit(b *built, d *dir) error {
	o := b.opts
	if hasAuth(o) || len(o.Accounts) > 0 {
		if b.foreign = true; c.Users != "" {
			return c.twice("Users", "authorization, accounts or operator")
		}
		return nil
	}
	if c.Users == "" {
		o.Authorization, b.secrets[""] = d.token, d.token
		return nil
	}
	users, err := readUsers(c.Users)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(users, func(u *declared) bool { return u.name == adminName }) {
		users = append(users, &declared{name: adminName, all: true})
	}
	b.users = users
	for _, u := range users {
		if len(u.nkeys) == 0 {
			if b.secrets[u.name], err = d.userSecret(u.name); err != nil {
				return err
			}
		}
	}
	b.addUsers()
	return nil
}
