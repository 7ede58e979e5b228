// Package hub runs a NATS broker inside this process: nats-server, embedded,
// with defaults that lose nothing.
//
// # Storage
//
// JetStream is on and syncs every message to disk before it acknowledges it
// (SyncAlways): what was acknowledged survives kill -9 and power loss. It is
// given a disk and a memory limit that do not depend on what happens to be
// free, so that a restart never finds less room than was already handed out.
//
// # One owner
//
// nats-server itself does not lock its store: two on one directory both start
// and lose data. A Hub holds an exclusive lock on its directory from before
// the server opens the store until after the server has closed it. The kernel
// drops the lock with the process, so a crash leaves nothing to clean up.
//
// # Access
//
// A Hub listens on loopback unless told otherwise and always asks who comes: for
// its token, or with Options.Users for the secret or key of a user, who may do what
// that file says. Secrets are made once, are kept in files that only their owner can
// read, and appear in no URL and no log: clients are given the path of the file.
//
// What a configuration of nats-server (Options.Config) opens to other machines is
// refused unless Options.Expose says that it is meant, and if it lets in anybody.
//
// # Health
//
// nats-server tells nobody that a store cannot be written, and takes nothing more
// then. A Hub looks, says so in its log, at Options.Health and in its figures, and
// opens the store anew when the disk has room again.
//
// # The directory
//
//	lock      held while the hub runs; the owner's pid is inside, for people
//	token     the secret of a hub without users, mode 0600
//	users     a file with the secret of each user
//	port      the port last taken, asked for again when Options.Addr says port 0
//	address   the client URL; exists while the hub is ready, stale after kill -9
//	version   of the nats-server that opened the store last
//	store     nats-server's
//	probe     written now and then, and removed, to see that the disk takes it
//
// A store that a newer minor version of nats-server has written is refused, since
// nats-server itself does not look; see [Options.Downgrade].
//
// # Embedded
//
// Importing this package registers the scheme embed: with package adapter, for
// development:
//
//	bus, err := tidings.Open(ctx, "embed:./hub", o)
//
// The first process of this machine that opens a directory runs its hub, the others
// connect to that one over loopback. When that process closes its last bus, or dies,
// another one that has the directory open takes over: on the same port if it can be
// had, and where else the others find it. Nothing that was accepted as durable is lost
// in that, and live events are as in any outage. Of a directory on which a hub of its
// own runs, all are clients. The process that runs the hub does so with all its memory
// and all its faults: in production let "tidings hub" or "tidings run --hub" do that.
//
// # Backup
//
// [Backup] copies streams with their groups while the hub works, and [Restore] puts
// them into another. Both do all or nothing.
//
// # Shutdown
//
// [Hub.Stop] closes all client connections, closes the store, then lets the
// lock go. It does not drain clients: theirs is to reconnect and resend. In a cluster
// it leaves first, so that streams have other leaders and clients other servers.
// A fault that would make nats-server end its process stops the hub instead:
// [Hub.Done] is closed and [Hub.Err] says why.
package hub
