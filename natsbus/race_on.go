//go:build race

package natsbus

// interestEvery is 0: nats-server, asked which subscriptions a connection has, reads of
// connections that are just being made what their goroutines write. It comes to no harm,
// but where the server is in the same process, as in tests, the race detector says so:
// programs that are built with it do not ask.
const interestEvery = 0
