package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// fdatasync leaves out the times of the file, which nobody needs after a crash.
func fdatasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
