package hub_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/tidings-go/tidings/hub"
	"github.com/tidings-go/tidings/natsbus"
)

const urlVar = "TIDINGS_HUB_TEST_URL"

// On a disk that is full nothing half written is left. The disk is real, 256 KiB large
// and in namespaces of its own, which the test needs.
func TestBackupOnAFullDisk(t *testing.T) {
	_, js, h := at(t, t.TempDir())
	stored(t, js, "ORDERS")
	for i := range 20 {
		b := make([]byte, 100_000)
		for k := range b { // what cannot be compressed
			i = i*1103515245 + 12345
			b[k] = byte(i >> 16)
		}
		_, err := js.Publish(t.Context(), "orders.placed", b)
		must(t, err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(as("full", t.TempDir()), urlVar+"="+h.URL())...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "nothing is left") {
		t.Errorf("%v (it needs a kernel that lets this user make namespaces)\n%s", err, out)
	}
}

// runFull takes a backup on a disk that is too small for it.
func runFull(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	nc, err := natsbus.Connect(context.Background(), os.Getenv(urlVar), "test")
	if err != nil {
		return err
	}
	defer nc.Close()
	_, err = hub.Backup(context.Background(), nc, dir+"/backup")
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "stream ORDERS") || !strings.Contains(err.Error(), dir) {
		return fmt.Errorf("the error is %w, want one of a full disk with the stream and the file", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		return fmt.Errorf("it leaves %v (%v)", left, err)
	}
	fmt.Println("nothing is left")
	return nil
}
