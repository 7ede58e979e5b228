//go:build !race

package natsbus

import "time"

// interestEvery is how often a server is asked for our subscriptions.
const interestEvery = 10 * time.Second
