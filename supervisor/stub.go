//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// stubArg is the subcommand as which the master starts itself to become a
// worker.
const stubArg = "__exec"

// ExecStub is the subcommand `__exec -- COMMAND…`: args is what follows
// `__exec`. It becomes COMMAND, so it returns only an error. Every main
// program that calls [Run] must offer it.
//
// It exists because LISTEN_PID must be the worker's own pid, which a Go
// program learns only after it has started the worker; and because signals
// that the master was started with as ignored (by nohup, say) would stay so.
func ExecStub(args []string) error {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("supervisor: __exec: no command: this is for the master's own use")
	}
	if err := applyUmask(); err != nil {
		return err
	}
	path := os.Getenv(programEnv)
	os.Unsetenv(programEnv)
	if path == "" {
		var err error
		if path, err = exec.LookPath(args[0]); err != nil {
			return fmt.Errorf("supervisor: command: %w", err)
		}
	}
	pid := strconv.Itoa(os.Getpid())
	for of, name := range map[string]string{"LISTEN_FDS": "LISTEN_PID", "WATCHDOG_USEC": "WATCHDOG_PID"} {
		if os.Getenv(of) != "" {
			os.Setenv(name, pid)
		}
	}
	resetIgnored()
	return fmt.Errorf("supervisor: command %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

// resetIgnored gives ignored signals a handler: execve makes handled signals
// default again, but leaves ignored ones. Those not listed the runtime already
// handles. HUP and INT get one only if they are ignored, so that one sent to a
// worker that is still in the stub is not swallowed.
func resetIgnored() {
	var never = make(chan os.Signal, 1)
	signal.Notify(never, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT)
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(never, s)
		}
	}
}
