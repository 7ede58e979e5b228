package hub

import (
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidings-go/tidings/natsbus"
)

// replyWithin is how long after a request its handler may reply.
const replyWithin = 10 * time.Minute

// addUsers makes users of nats-server of those that are declared.
func (b *built) addUsers() {
	var all []natsbus.Rights
	for _, u := range b.users {
		if !u.all {
			all = append(all, u.rights())
		}
	}
	for _, u := range b.users {
		var p *server.Permissions // nil: everything
		if !u.all {
			p = permissions(u.rights().Permissions(all...))
		}
		if len(u.nkeys) == 0 {
			b.opts.Users = append(b.opts.Users, &server.User{Username: u.name, Password: b.secrets[u.name], Permissions: p})
		}
		for _, key := range u.nkeys {
			b.opts.Nkeys = append(b.opts.Nkeys, &server.NkeyUser{Nkey: key, Permissions: p})
		}
	}
}

func permissions(p natsbus.Permissions) *server.Permissions {
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: p.Publish, Deny: p.DenyPublish},
		Subscribe: &server.SubjectPermission{Allow: p.Subscribe, Deny: p.DenySubscribe},
		// Who handles a request may reply, once, wherever its reply is to go.
		Response: &server.ResponsePermission{MaxMsgs: 1, Expires: replyWithin},
	}
}
