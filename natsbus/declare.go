package natsbus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/tidings-go/tidings/internal/topic"
)

// ReadDeclarations reads which streams there are to be. A line in brackets names
// an app, and what follows is about its stream:
//
//	[shop]
//	durable   = order.> invoice.*
//	max-bytes = 4GiB        # also max-msgs, replicas, duplicates
//	fixed     = yes
//
// Errors begin with name and line.
func ReadDeclarations(name string, r io.Reader) ([]Declaration, error) {
	var all []Declaration
	var keys map[string]bool // that the app has already
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		var err error
		if strings.HasPrefix(line, "[") {
			keys = map[string]bool{}
			all, err = beginApp(all, line)
		} else {
			err = setLine(all, line, keys)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, d := range all {
		if len(d.Durable) == 0 {
			return nil, fmt.Errorf("%s: app %s declares no topics: add a line like \"durable = order.>\"", name, d.App)
		}
	}
	if all == nil {
		return nil, fmt.Errorf("%s: nothing is declared: it begins with the name of an app in brackets, like [shop]", name)
	}
	return all, nil
}

func beginApp(all []Declaration, line string) ([]Declaration, error) {
	app, ok := strings.CutSuffix(line[1:], "]")
	if topic.Check(app) != nil || !ok {
		return all, fmt.Errorf("%q: want the name of an app in brackets, like [shop]", line)
	}
	if slices.ContainsFunc(all, func(d Declaration) bool { return d.App == app }) {
		return all, fmt.Errorf("app %s is there already", app)
	}
	return append(all, Declaration{App: app}), nil
}

func setLine(all []Declaration, line string, seen map[string]bool) error {
	if len(all) == 0 {
		return errors.New("before the first setting comes the name of an app in brackets, like [shop]")
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("%q: want KEY = VALUE", line)
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if seen[key] {
		return fmt.Errorf("%s is there already", key)
	}
	seen[key] = true
	d := &all[len(all)-1]
	switch {
	case key == "fixed":
		if d.Fixed = value == "yes"; !d.Fixed && value != "no" {
			return fmt.Errorf("fixed: %q: want yes or no", value)
		}
		return nil
	case slices.Contains(settingKeys, key):
		return d.Set(key, value)
	case key != "durable":
		return unknownKey(key, append([]string{"durable", "fixed"}, settingKeys...))
	}
	for _, pattern := range strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }) {
		if err := topic.CheckPattern(pattern); err != nil {
			return fmt.Errorf("durable: %q: %w", pattern, err)
		}
		d.Durable = append(d.Durable, pattern)
	}
	return nil
}
