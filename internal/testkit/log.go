package testkit

import (
	"fmt"
	"os"
	"testing"
)

// failures shows why a server gave up and drops the rest of its log. It writes
// to stderr rather than to the test's log, which must not be used once the
// test is over.
type failures struct{ t testing.TB }

func (f failures) Fatalf(format string, v ...any) {
	fmt.Fprintf(os.Stderr, "%s: nats-server: %s\n", f.t.Name(), fmt.Sprintf(format, v...))
}

func (failures) Noticef(string, ...any) {}
func (failures) Warnf(string, ...any)   {}
func (failures) Errorf(string, ...any)  {}
func (failures) Debugf(string, ...any)  {}
func (failures) Tracef(string, ...any)  {}
