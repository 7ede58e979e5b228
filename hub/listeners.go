package hub

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"
)

// A listener is one that the server opens.
type listener struct {
	name   string // in a configuration file
	host   string
	port   int
	auth   bool // it lets in who can prove who he is
	tls    bool
	noAuth bool // it has no way to ask
}

func (l listener) addr() string {
	return net.JoinHostPort(cmp.Or(l.host, "0.0.0.0"), strconv.Itoa(max(l.port, 0)))
}

// listeners are all that options open. An empty host means all interfaces.
func listeners(o *server.Options) []listener {
	auth := hasAuth(o)
	all := []listener{{name: "listen", host: o.Host, port: o.Port, auth: auth && o.NoAuthUser == "", tls: o.TLSConfig != nil && !o.AllowNonTLS}}
	add := func(open bool, l listener) {
		if open {
			all = append(all, l)
		}
	}
	add(o.Cluster.Port != 0, listener{name: "cluster", host: o.Cluster.Host, port: o.Cluster.Port,
		auth: o.Cluster.Username != "" || verified(o.Cluster.TLSConfig), tls: o.Cluster.TLSConfig != nil})
	add(o.Gateway.Port != 0, listener{name: "gateway", host: o.Gateway.Host, port: o.Gateway.Port,
		auth: o.Gateway.Username != "" || verified(o.Gateway.TLSConfig), tls: o.Gateway.TLSConfig != nil})
	l := o.LeafNode
	add(l.Port != 0, listener{name: "leafnodes", host: l.Host, port: l.Port,
		auth: l.Username != "" || l.Nkey != "" || len(l.Users) > 0 || auth && o.NoAuthUser == "", tls: l.TLSConfig != nil})
	w := o.Websocket
	add(w.Port != 0, listener{name: "websocket", host: w.Host, port: w.Port,
		auth: (w.Username != "" || w.Token != "" || auth) && cmp.Or(w.NoAuthUser, o.NoAuthUser) == "", tls: w.TLSConfig != nil})
	m := o.MQTT
	add(m.Port != 0, listener{name: "mqtt", host: m.Host, port: m.Port,
		auth: (m.Username != "" || m.Token != "" || auth) && cmp.Or(m.NoAuthUser, o.NoAuthUser) == "", tls: m.TLSConfig != nil})
	add(o.HTTPPort != 0, listener{name: "http", host: o.HTTPHost, port: o.HTTPPort, noAuth: true})
	add(o.HTTPSPort != 0, listener{name: "https", host: o.HTTPHost, port: o.HTTPSPort, noAuth: true})
	add(o.ProfPort != 0, listener{name: "prof_port", host: o.Host, port: o.ProfPort, noAuth: true})
	return all
}

// hasAuth: whoever connects has to prove who he is.
func hasAuth(o *server.Options) bool {
	return o.Authorization != "" || o.Username != "" || len(o.Users)+len(o.Nkeys) > 0 || len(o.TrustedOperators)+len(o.TrustedKeys) > 0 ||
		o.CustomClientAuthentication != nil || o.AuthCallout != nil
}

// verified: who connects must show a certificate.
func verified(c *tls.Config) bool {
	return c != nil && c.ClientAuth == tls.RequireAndVerifyClientCert
}

// checkListeners refuses what can be reached from other machines without being
// meant to, or by anybody; and returns those that can be, without TLS.
func (c config) checkListeners(o *server.Options) (clear []listener, err error) {
	for _, l := range listeners(o) {
		if isLoopback(l.host) {
			continue
		}
		at := fmt.Sprintf("%s of %s, %s,", l.name, c.Config, l.addr())
		if c.Config == "" {
			at = "Options.Addr " + l.addr()
		}
		switch {
		case l.noAuth:
			return nil, fmt.Errorf("%s can be reached from other machines and asks for no password: let it listen on 127.0.0.1", at)
		case !c.Expose:
			return nil, fmt.Errorf("%s can be reached from other machines: let it listen on 127.0.0.1, or set Options.Expose (--expose) if that is meant", at)
		case !l.auth:
			return nil, fmt.Errorf("%s can be reached from other machines and lets in anybody: give it an authorization block, or users, or TLS with verify, and no no_auth_user; or let it listen on 127.0.0.1", at)
		case !l.tls:
			clear = append(clear, l)
		}
	}
	return clear, nil
}
