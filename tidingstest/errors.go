package tidingstest

import (
	"errors"
	"slices"
	"sync"
)

// failures are the errors that the bus had no caller for.
type failures struct {
	mu       sync.Mutex
	all      []error
	expected []expected
	allowed  []func(error) bool
}

type expected struct {
	what  string
	match func(error) bool
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, err)
}

// ExpectError says that the bus will report errors that are target, by errors.Is,
// or has done so: one at least must come by the end of the test, and none of them
// fails it.
func (b *Bus) ExpectError(target error) {
	b.ExpectErrorMatching("errors.Is "+target.Error(), func(err error) bool { return errors.Is(err, target) })
}

// ExpectErrorMatching is [Bus.ExpectError] for errors that match; what describes
// them if none comes.
func (b *Bus) ExpectErrorMatching(what string, match func(error) bool) {
	b.errs.mu.Lock()
	defer b.errs.mu.Unlock()
	b.errs.expected = append(b.errs.expected, expected{what, match})
}

// AllowErrors says that errors that match do not fail the test; nil: any. None
// has to come.
func (b *Bus) AllowErrors(match func(error) bool) {
	if match == nil {
		match = func(error) bool { return true }
	}
	b.errs.mu.Lock()
	defer b.errs.mu.Unlock()
	b.errs.allowed = append(b.errs.allowed, match)
}

// Errors returns what the bus has reported to OnError so far, expected or not, in
// the order it came. What handlers return is there once they have been settled.
func (b *Bus) Errors() []error {
	b.errs.mu.Lock()
	defer b.errs.mu.Unlock()
	return slices.Clone(b.errs.all)
}

// report returns what came and was not expected, and what was expected and did
// not come.
func (f *failures) report() (unhandled []error, missing []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	came := make([]bool, len(f.expected))
	for _, err := range f.all {
		known := slices.ContainsFunc(f.allowed, func(match func(error) bool) bool { return match(err) })
		for i, x := range f.expected {
			if x.match(err) {
				came[i], known = true, true
			}
		}
		if !known {
			unhandled = append(unhandled, err)
		}
	}
	for i, x := range f.expected {
		if !came[i] {
			missing = append(missing, x.what)
		}
	}
	return unhandled, missing
}
