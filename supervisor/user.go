//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// An identity is whom workers run as.
type identity struct {
	cred *syscall.Credential
	env  []string // that says so
}

// identityOf looks up USER or USER:GROUP, by names or numbers; nil for "".
func identityOf(text string) (*identity, error) {
	if text == "" {
		return nil, nil
	}
	name, group, _ := strings.Cut(text, ":")
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("supervisor: User %s: there is no user %q on this machine", text, name)
		}
	}
	gid := u.Gid
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			if g, err = user.LookupGroupId(group); err != nil {
				return nil, fmt.Errorf("supervisor: User %s: there is no group %q on this machine", text, group)
			}
		}
		gid = g.Gid
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("supervisor: User %s: its groups: %w", text, err)
	}
	id := &identity{cred: &syscall.Credential{}, env: []string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username}}
	var errs []error
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		errs = append(errs, err)
		return uint32(n)
	}
	id.cred.Uid, id.cred.Gid = number(u.Uid), number(gid)
	for _, g := range groups {
		id.cred.Groups = append(id.cred.Groups, number(g))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("supervisor: User %s: %w", text, err)
	}
	switch self := uint32(os.Geteuid()); {
	case self == 0:
	case self == id.cred.Uid && int(id.cred.Gid) == os.Getegid():
		id.cred = nil // nothing to change, and no right to
	default:
		return nil, fmt.Errorf("supervisor: User %s: this master runs as user %d, and only root can start workers as another: start it as root, or leave it out", text, self)
	}
	return id, nil
}

func (id *identity) credential() *syscall.Credential {
	if id == nil {
		return nil
	}
	return id.cred
}

// give makes a path the workers' own.
func (id *identity) give(path string) error {
	if id == nil || id.cred == nil {
		return nil
	}
	if err := os.Chown(path, int(id.cred.Uid), int(id.cred.Gid)); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	return nil
}

// owns reports whether a process is the workers' user's. Where nobody else is meant it
// is: the kernel asks again when the process is signalled.
func (id *identity) owns(pid int) bool {
	if id == nil || id.cred == nil {
		return true
	}
	st, err := os.Stat("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return false // or there is no such directory here, as on macOS
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	return ok && owner.Uid == id.cred.Uid
}
