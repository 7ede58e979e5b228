// Package natsbus carries events over NATS: live ones over core NATS, durable
// ones over JetStream. Importing it registers the schemes "nats" and "tls" with
// package adapter; applications then open a URL and use nothing from here. What
// tools need to look at streams and change them is [Admin].
//
//	nats://[user:pass@|token@]host:port[,host2...]
//	       [?user-file=PATH|?nkey=PATH|?token-file=PATH|?creds=PATH][&inbox=SUBJECT][&ca=PATH][&cert=PATH&key=PATH]
//	       [&max-bytes=SIZE][&max-msgs=N][&replicas=N][&duplicates=DURATION][&manage=true][&ack-wait=DURATION]
//	       [&wire=structured|binary]
//
// The second line is how the server knows this process, and where its answers come,
// _INBOX.NAME of a user by default. All files are read at each connect, so that what was
// rotated is taken at the next one; while the server refuses what is there, the log and
// OnError say so, with the way out. The third says what the app's stream is to be; a
// stream that is there is changed only with manage=true. The fourth is how live events
// are written. [Rights] are what permissions a user needs.
//
// What it promises:
//
//   - One connection publishes and subscribes. With two, the publisher's comes
//     back first after a restart of the broker, and what it sends then reaches
//     nobody (measured: 4 191 of 10 043 lost with two, 5 with one).
//   - It reconnects for ever. The first connection is not retried: a wrong
//     address or a refused credential is an error of Open that says the way out.
//   - Publishing never blocks on the network. Live events are accepted into a
//     bounded queue; those written since the server last answered when a
//     connection breaks are counted as in doubt.
//   - A subscription that the server has lost is found within ten seconds, and made
//     anew; a connection that is lost is spoken of in the log until it is back, with
//     cause and way out.
//   - A durable publish returns nil only when the stream has acknowledged it.
//     What was not acknowledged when a connection broke is sent again in order,
//     with the same id, before any new durable event.
//   - A subscription exists when Subscribe returns: the server has answered
//     after it, and no permission was missing.
//   - Acknowledgements are confirmed, and sent again when they were lost. What
//     the server delivers again although this process has settled it is only
//     acknowledged again.
//   - What is given up is stored as a dead letter, and acknowledged, before the
//     original is terminated; of one event of a group there is one letter at most.
//     Its stream is made when the first event dies. Redelivered, an event reaches the
//     group that gave it up alone, by a subject that only its consumer has.
//   - A stream is purged of what every group has acknowledged before a publisher
//     is told that it is full, and of nothing else.
//   - Draining waits: nothing that was taken is dropped, no matter how the
//     connection ends.
//
// On the wire an event is a CloudEvent. A live one is in structured mode: the
// message's body is the event in JSON, and there is no header unless one must be
// there, as in release 1.0.2 of CloudEvents' NATS binding and as its Go SDK writes;
// headers cost more than all the rest of a message. A durable one, and with
// wire=binary a live one too, is in binary mode, of the binding's drafts since: the
// payload is the message's body as it is, attributes are headers. Both modes are
// read whatever is written, with or without a Content-Type, and so are messages
// that are no CloudEvents. W3C trace context travels in headers of its own names.
package natsbus
