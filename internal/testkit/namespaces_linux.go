package testkit

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Alone is what a process says that [InNamespaces] has run, when all was well.
const Alone = "everything was as it should be"

// InNamespaces runs this test binary once more, as root in a mount namespace of its own,
// where it can have a small disk: with a directory in the environment variable, from which
// it knows what to do. It must say [Alone].
func InNamespaces(t testing.TB, env string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v (it needs a kernel that lets this user make namespaces)\n%s", err, out)
	}
	if !strings.Contains(string(out), Alone) {
		t.Errorf("it says\n%s", out)
	}
}
