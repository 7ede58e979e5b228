//go:build unix

package supervisor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// umaskEnv tells the stub the worker's umask. It cannot be set in the master: what
// that creates at the same time would have it, too.
const umaskEnv = "TIDINGS_EXEC_UMASK"

// applyUmask is for the stub.
func applyUmask() error {
	text := os.Getenv(umaskEnv)
	if text == "" {
		return nil
	}
	os.Unsetenv(umaskEnv)
	mask, err := parseUmask(text)
	if err == nil {
		unix.Umask(mask)
	}
	return err
}

func parseUmask(text string) (int, error) {
	mask, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mask > 0o777 {
		return 0, fmt.Errorf("supervisor: Umask is %q: give an octal number up to 777, such as 027", text)
	}
	return int(mask), nil
}

// readEnv reads a file of NAME=VALUE lines. Blank lines and those that begin with #
// are skipped; a value may be in single or double quotes, which are taken off.
func readEnv(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("supervisor: environment file: %w", err)
	}
	var env []string
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		switch {
		case !found || name == "" || strings.ContainsAny(name, " \t\x00"):
			errs = append(errs, fmt.Errorf("supervisor: environment file %s:%d: write NAME=VALUE, without spaces around the name", path, n))
		case slices.Contains(protocolVars, name):
			errs = append(errs, fmt.Errorf("supervisor: environment file %s:%d: %s is set by the master: leave it out", path, n, name))
		default:
			if q := len(value) - 1; q > 0 && value[0] == value[q] && (value[0] == '"' || value[0] == '\'') {
				value = value[1:q]
			}
			env = append(env, name+"="+value)
		}
	}
	return env, errors.Join(append(errs, lines.Err())...)
}

// baseEnv is a worker's environment but for the protocol's variables.
func (m *master) baseEnv(r *release) []string {
	without := slices.Clone(protocolVars)
	var own []string
	if m.as != nil {
		own = m.as.env
	}
	own = append(slices.Clip(own), r.env...) // the file comes last, and counts
	for _, v := range own {
		name, _, _ := strings.Cut(v, "=")
		without = append(without, name)
	}
	if m.cfg.Dir != "" {
		without = append(without, "PWD")
	}
	env := append(environ(without...), own...)
	if m.cfg.Dir != "" {
		env = append(env, "PWD="+r.dir)
	}
	env = m.withHub(env)
	if m.cfg.Umask != "" {
		env = append(env, umaskEnv+"="+m.cfg.Umask)
	}
	return env
}

// mayEnter explains what the failure of a fork would not.
func mayEnter(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("it is no directory")
	}
	if err != nil {
		return fmt.Errorf("supervisor: Dir %s: %w", dir, err)
	}
	return nil
}
