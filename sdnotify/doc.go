//go:build unix

// Package sdnotify speaks systemd's two service protocols, at both ends:
// NOTIFY_SOCKET, by which a service says how it is, and LISTEN_FDS, by which
// it is given sockets that are already open.
//
// A worker of this project uses nothing but these two to talk to its master,
// so it runs the same under `tidings run` and under systemd.
//
// # Sending
//
// [Notify] sends one datagram to the manager. Without a manager it does
// nothing and returns nil, so that callers need not ask first. It never
// blocks for longer than [SendTimeout]: a stuck manager must not keep a
// service from draining.
//
// # Receiving
//
// A [Receiver] is the manager's end. It has one socket per service, so that
// the sender is known by the socket and not by credentials, which macOS does
// not attach to datagrams. A malformed datagram never ends a Receiver: it
// reaches the caller as a [Message] whose Bad names the lines.
//
// # Sockets
//
// [Listeners] and [Files] return what was inherited, once: they unset the
// variables and set close-on-exec, so that nothing leaks into children.
package sdnotify
