package adapter

import "context"

// Canceler is implemented by adapters whose Caps say Delay.
type Canceler interface {
	// Cancel takes back the message of that Topic and ID that waits for its
	// NotBefore, and reports whether there was one. A message that is due at this
	// moment may be delivered although it was there. It may be called concurrently,
	// and from inside Deliver.
	Cancel(ctx context.Context, topic, id string) (bool, error)
}
