package hub

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/tidings-go/tidings/internal/topic"
	"github.com/tidings-go/tidings/natsbus"
)

// adminName is the hub's own user, who may everything: for tools of this machine.
const adminName = "admin"

// A declared user is what a users file says of one.
type declared struct {
	name      string
	line      int // where it is named first
	prefix    string
	apps      []string
	nkeys     []string
	all       bool // may everything
	fixed     bool // may not change streams
	publish   []string
	subscribe []natsbus.Subscribing
}

// readUsers reads a users file.
func readUsers(file string) ([]*declared, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the users file: %w", err)
	}
	return parseUsers(file, string(b))
}

// parseUsers reads statements, each on a line of its own or after a semicolon:
//
//	prefix NAME
//	USER may publish TOPIC, ...
//	USER may subscribe PATTERN, ... [in GROUP, ...]
//	USER may everything
//	USER may not change streams
//	USER runs APP, ...
//	USER nkey PUBLICKEY, ...
//
// A statement without a user, after a semicolon, is about the one before it.
func parseUsers(file, text string) ([]*declared, error) {
	p := &usersParser{users: map[string]*declared{}}
	for i, line := range strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n") {
		p.line, p.last = i+1, ""
		for statement := range strings.SplitSeq(uncomment(line), ";") {
			if err := p.statement(words(statement)); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", file, p.line, err)
			}
		}
	}
	owners := map[string]string{} // of keys
	for _, u := range p.order {
		err := u.check()
		for _, k := range u.nkeys {
			if other := owners[k]; other != "" {
				err = wrong(u.name, "has the key %s... that %s has: each user needs one of its own", k[:8], other)
			}
			owners[k] = u.name
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, u.line, err)
		}
	}
	if len(p.order) == 0 {
		return nil, fmt.Errorf("%s: names no user: write a line like %q", file, "shop may publish order.>")
	}
	return p.order, nil
}

// uncomment takes away a word that begins with # and what is behind it.
func uncomment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t' || line[i-1] == ';' || line[i-1] == ',') {
			return line[:i]
		}
	}
	return line
}

// words are what spaces part, and commas, which are words of their own.
func words(statement string) []string {
	return strings.Fields(strings.ReplaceAll(statement, ",", " , "))
}

type usersParser struct {
	line   int
	last   string // user of the statement before, in this line
	prefix string
	users  map[string]*declared
	order  []*declared
}

var verbs = []string{"may", "runs", "nkey"}

func (p *usersParser) statement(w []string) error {
	switch {
	case len(w) == 0:
		return nil
	case w[0] == "prefix":
		return p.setPrefix(w[1:])
	case !slices.Contains(verbs, w[0]):
		p.last, w = w[0], w[1:]
	case p.last == "":
		return wrong(w[0], "no user before it: write one, like \"shop %s\"", strings.Join(w, " "))
	}
	u, err := p.user(p.last)
	if err != nil {
		return err
	}
	if len(w) == 0 {
		return wrong(p.last, "nothing is said of this user: go on with may, runs or nkey")
	}
	switch w[0] {
	case "may":
		return u.may(w[1:])
	case "runs":
		u.apps, err = list(u.apps, w[1:], "the apps that it runs", checkWord)
	case "nkey":
		u.nkeys, err = list(u.nkeys, w[1:], "its public keys", checkNkey)
	default:
		return wrong(w[0], "want may, runs or nkey after a user's name%s", meant(w[0], verbs))
	}
	return err
}

func (p *usersParser) setPrefix(w []string) error {
	if len(w) != 1 {
		return wrong("prefix", "want one name after it, that of the applications' Options.Prefix")
	}
	if err := topic.Check(w[0]); err != nil {
		return wrong(w[0], "cannot be a prefix: %v", err)
	}
	p.prefix = w[0]
	return nil
}

var userName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

func (p *usersParser) user(name string) (*declared, error) {
	if !userName.MatchString(name) {
		return nil, wrong(name, "cannot be a user: a name has letters, digits, - and _ only, 64 at most")
	}
	u := p.users[name]
	switch {
	case u == nil:
		u = &declared{name: name, line: p.line, prefix: p.prefix}
		p.users[name] = u
		p.order = append(p.order, u)
	case u.prefix != p.prefix:
		return nil, wrong(name, "was declared with prefix %q, in line %d, and is here with %q: each environment needs users of its own, like %s-%s, and a statement \"runs %s\"", u.prefix, u.line, p.prefix, p.prefix, name, name)
	}
	return u, nil
}

var rights = []string{"publish", "subscribe", "everything", "not"}

func (u *declared) may(w []string) (err error) {
	if len(w) == 0 {
		return wrong("may", "want publish, subscribe, everything, or \"not change streams\" after it")
	}
	rest := w[1:]
	switch w[0] {
	case "publish":
		u.publish, err = list(u.publish, rest, "topics", u.checkTopic)
	case "subscribe":
		err = u.maySubscribe(rest)
	case "everything":
		if u.all = true; len(rest) > 0 {
			err = wrong(rest[0], "nothing can follow everything")
		}
	case "not":
		if u.fixed = true; !slices.Equal(rest, []string{"change", "streams"}) {
			err = wrong("not", "the only thing that can be taken away is \"may not change streams\"; what is not allowed is not")
		}
	default:
		err = wrong(w[0], "want publish, subscribe, everything, or \"not change streams\" after may%s", meant(w[0], rights))
	}
	return err
}

func (u *declared) maySubscribe(w []string) error {
	var groups []string
	var err error
	if i := slices.Index(w, "in"); i >= 0 {
		if groups, err = list(nil, w[i+1:], "groups", checkWord); err != nil {
			return err
		}
		w = w[:i]
	}
	patterns, err := list(nil, w, "patterns of topics", u.checkTopic)
	for _, p := range patterns {
		u.subscribe = append(u.subscribe, natsbus.Subscribing{Pattern: p, Groups: groups})
	}
	return err
}

// list adds words with commas between them.
func list(to, w []string, what string, check func(string) error) ([]string, error) {
	if len(w) == 0 {
		return nil, fmt.Errorf("the line ends where %s should be: write them with commas between", what)
	}
	for i, word := range w {
		switch comma := word == ","; {
		case comma != (i%2 == 1):
			return nil, wrong(word, "want %s with one comma between each two", what)
		case !comma:
			if err := check(word); err != nil {
				return nil, err
			}
			if !slices.Contains(to, word) {
				to = append(to, word)
			}
		case i == len(w)-1:
			return nil, wrong(word, "nothing comes after the comma")
		}
	}
	return to, nil
}

func (u *declared) checkTopic(s string) error {
	if err := topic.CheckPattern(s); err != nil {
		return wrong(s, "is no topic and no pattern of topics: %v", err)
	}
	if u.prefix == "" && (s[0] == '*' || s[0] == '>') {
		return wrong(s, "would allow NATS's own subjects, too: begin with a name, like order.>, give the applications a prefix (prefix NAME), or write \"%s may everything\"", u.name)
	}
	return nil
}

// checkWord is for names of apps and groups, of which others say more.
func checkWord(s string) error {
	dots := strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || strings.Contains(s, "..")
	if len(s) > 256 || dots || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' || r == '*' || r == '>' }) {
		return wrong(s, "cannot be the name of an app or group here: write it without *, > and dots at its ends")
	}
	return nil
}

// checkNkey never repeats what may be a secret.
func checkNkey(s string) error {
	switch {
	case strings.HasPrefix(s, "S"):
		return errors.New("nkey: what follows begins with S, as secret seeds do: write the public key, which begins with U (\"nk -inkey FILE -pubout\" prints it), and make a new seed if others could read this file")
	case !nkeys.IsValidPublicUserKey(s):
		return wrong(s, "is no public key of a user: it begins with U and has 56 letters and digits, as \"nk -inkey FILE -pubout\" prints it")
	}
	return nil
}

// check completes a user and refuses what makes no sense together.
func (u *declared) check() error {
	some := len(u.publish)+len(u.subscribe) > 0
	switch {
	case u.name == adminName && (some || u.fixed || len(u.nkeys) > 0 || !u.all):
		return wrong(u.name, "is the hub's own user and may everything anyway: take another name")
	case u.all && (some || u.fixed):
		return wrong(u.name, "may everything, and has a statement that says less: leave one of them out")
	case !u.all && !some:
		return wrong(u.name, "may do nothing: write what it may, like \"%s may publish order.>\"", u.name)
	}
	if u.apps == nil {
		u.apps = []string{u.name}
	}
	for i := range u.subscribe {
		if u.subscribe[i].Groups == nil {
			u.subscribe[i].Groups = u.apps // the default of SubscribeOptions
		}
	}
	return nil
}

// rights are what natsbus makes permissions of.
func (u *declared) rights() natsbus.Rights {
	return natsbus.Rights{User: u.name, Inboxes: u.nkeys, Prefix: u.prefix, Apps: u.apps,
		Publish: u.publish, Subscribe: u.subscribe, FixedStreams: u.fixed}
}

// wrong is a mistake with the word that it is about.
func wrong(word, format string, v ...any) error {
	return fmt.Errorf("%q: %s", clip(word), fmt.Sprintf(format, v...))
}

// clip shows what a word is and not what it holds, should it be a secret that was
// written into the wrong file.
func clip(s string) string {
	s, _, secret := strings.Cut(s, ":")
	const most = 24 // letters without a sign between them
	n := 0
	for i := range len(s) {
		if n++; strings.IndexByte("./-_*>", s[i]) >= 0 {
			n = 0
		}
		if n > most {
			return s[:i-most+4] + "..."
		}
	}
	if secret {
		s += ":..."
	}
	return s
}

// meant names a known word that begins alike.
func meant(word string, known []string) string {
	i := slices.IndexFunc(known, func(k string) bool { return len(word) > 0 && strings.EqualFold(k[:1], word[:1]) })
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", cmp.Or(known[i], word))
}
