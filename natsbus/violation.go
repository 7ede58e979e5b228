package natsbus

import (
	"bytes"
	"fmt"
	"net"
)

// payloadViolation is the last that nats-server says on a connection that has sent a
// message above max_payload, before it closes it: which happens when the limit was
// lowered by a reload, since clients are not told. nats.go (processErr) takes any error
// that it does not know for the end of the connection, for good: 1.55.0 does not
// reconnect then, and every later publish of the process would fail.
var payloadViolation = []byte("-ERR 'Maximum Payload Violation'\r\n")

// A patientConn is a connection that ends with that error as one that has broken: then
// nats.go reconnects, is told the limit of now, and refuses what is above.
//
// Nothing is done about TLS, where the text does not show here.
type patientConn struct {
	net.Conn
	held []byte // of the error, which was read last, and is passed on unless it is the end
}

func (c *patientConn) Read(p []byte) (int, error) {
	for {
		n := copy(p, c.held)
		if c.held = c.held[n:]; len(p) < 2*len(payloadViolation) && n > 0 {
			return n, nil
		}
		more, err := c.Conn.Read(p[n:])
		switch {
		case err != nil && n > 0:
			return 0, fmt.Errorf("a message was above max_payload of the server, which is less than when the connection began: %w", err)
		case err != nil:
			return more, err
		}
		n += more
		if !bytes.HasSuffix(p[:n], payloadViolation) || len(p) < 2*len(payloadViolation) {
			return n, nil
		}
		// What a subscriber gets may end with the same words; then more comes after it.
		c.held = payloadViolation
		if n -= len(payloadViolation); n > 0 {
			return n, nil
		}
	}
}
