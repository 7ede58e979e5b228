//go:build unix

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a worker needs at least: connections, files, and what its handlers open.
const (
	fewDescriptors  = 1024
	tooDescriptors  = 256
	fewProcesses    = 256
	defaultSpoolMax = 1 << 30
)

// machine looks at where the application runs, which is taken to be here.
func (e *exam) machine(ctx context.Context) {
	e.descriptors()
	e.processes()
	e.spool()
	e.signals(ctx)
	e.orphans(ctx)
	e.environment()
}

func (e *exam) descriptors() {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		e.skip("descriptors", "the limit cannot be read: %v", err)
		return
	}
	// A Go program has raised its own to the hard limit, as workers in Go do.
	e.fact("machine.descriptors", limited(uint64(l.Cur)))
	found := fmt.Sprintf("%s files may be open at once", limited(uint64(l.Cur)))
	const do = "raise the limit: ulimit -Hn, LimitNOFILE= of systemd, or ulimits of the container"
	switch {
	case l.Cur < tooDescriptors:
		e.fail("descriptors", do, "%s: sockets, connections and the spool need them", found)
	case l.Cur < fewDescriptors:
		e.warn("descriptors", do, "%s", found)
	default:
		e.ok("descriptors", "%s", found)
	}
}

func limited(n uint64) string {
	if n >= 1<<62 {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

func (e *exam) processes() {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &l); err != nil {
		e.skip("processes", "the limit cannot be read: %v", err)
		return
	}
	most := uint64(l.Cur)
	found := limited(most) + " for this user"
	if n, ok := cgroupPids(); ok {
		found += fmt.Sprintf(", %s in this container", limited(n))
		most = min(most, n)
	}
	e.fact("machine.processes", limited(most))
	if most < fewProcesses {
		e.warn("processes", "raise ulimit -Hu, TasksMax= of systemd, or pids of the container: threads count, and a deploy starts twice as many workers", "%s", found)
		return
	}
	e.ok("processes", "%s", found)
}

// cgroupPids is how many tasks the container may have.
func cgroupPids() (n uint64, ok bool) {
	for _, path := range []string{"/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"} {
		if b, err := os.ReadFile(path); err == nil {
			n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
			return n, err == nil // or it says max
		}
	}
	return 0, false
}

// spool looks at the directory, and tries to write there.
func (e *exam) spool() {
	const name = "spool"
	dir := e.o.SpoolDir
	e.fact("spool", map[bool]string{true: "none", false: "a directory"}[dir == ""])
	if dir == "" {
		e.skip(name, "there is none (--spool-dir, TIDINGS_SPOOL_DIR): while the broker is away Publish waits")
		return
	}
	at := dir
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		at = filepath.Dir(dir)
		info, err = os.Stat(at)
	}
	switch {
	case err != nil:
		e.fail(name, "make the directory, for the user that the app runs as: install -d -m 700 "+dir, "%v", err)
		return
	case !info.IsDir():
		e.fail(name, "name a directory", "%s is none", at)
		return
	}
	took, err := tryWrite(at)
	if err != nil {
		e.fail(name, "give it to the user that the app runs as (this is tried as user "+strconv.Itoa(os.Getuid())+")", "cannot write: %v", err)
		return
	}
	found := fmt.Sprintf("%s can be written, a sync takes %v", at, short(took))
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		e.warn(name, "see the error", "%s; how much is free is not known: %v", found, err)
		return
	}
	free, want := uint64(st.Bavail)*uint64(st.Bsize), uint64(cmp.Or(e.o.SpoolMax, defaultSpoolMax))
	found += fmt.Sprintf(", %d MiB free", free>>20)
	e.fact("spool.max", want)
	switch mode := info.Mode().Perm(); {
	case at == dir && mode&0o077 != 0:
		e.fail(name, "chmod 700 "+dir, "%s; others can read what is in it (mode %04o)", found, mode)
	case free < want:
		e.warn(name, "make room, or set TIDINGS_SPOOL_MAX to less", "%s, but each process may keep %d MiB there", found, want>>20)
	default:
		e.ok(name, "%s, each process may keep %d MiB there", found, want>>20)
	}
}

// tryWrite has a few bytes synced in a file that is removed again.
func tryWrite(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, ".tidings-doctor-")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = f.WriteString("probe\n")
	err = errors.Join(err, f.Sync())
	took := time.Since(began)
	return took, errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// initName is what pid 1 is called, where that can be known.
func initName() string {
	if runtime.GOOS != "linux" {
		return ""
	}
	b, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
