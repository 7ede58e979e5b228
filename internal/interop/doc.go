// Package interop holds nothing but a test: that programs which know CloudEvents
// and NATS and not Tidings understand what it writes, and it what they write. The
// programs are sdkpeer, with the CloudEvents Go SDK and its own NATS protocols, and
// testdata/peer.mjs, with the NATS client and the CloudEvents SDK for JavaScript.
package interop
