package shop

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tidings-go/tidings/drill/witness"
)

// plants say which orders have which fate: the first that matches.
type plants []plant

type plant struct {
	fate  witness.Fate
	n     int
	every bool
}

// String implements flag.Value.
func (p *plants) String() string {
	var all []string
	for _, x := range *p {
		sign := "@"
		if x.every {
			sign = "/"
		}
		all = append(all, string(x.fate)+sign+strconv.Itoa(x.n))
	}
	return strings.Join(all, ",")
}

// Set implements flag.Value.
func (p *plants) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		i := strings.IndexAny(part, "/@")
		if i < 0 {
			return fmt.Errorf("%q: want FATE/N or FATE@N", part)
		}
		x := plant{fate: witness.Fate(part[:i]), every: part[i] == '/'}
		var err error
		if x.n, err = strconv.Atoi(part[i+1:]); err != nil || x.n < 1 {
			return fmt.Errorf("%q: N is a number from 1", part)
		}
		if !x.fate.Known() {
			return fmt.Errorf("%q: there is no fate %q; there are %q", part, x.fate, witness.Fates())
		}
		*p = append(*p, x)
	}
	return nil
}

func (p plants) of(n int) witness.Fate {
	for _, x := range p {
		if x.n == n || x.every && n%x.n == 0 {
			return x.fate
		}
	}
	return ""
}
