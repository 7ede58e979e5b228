//go:build !mutants

// Package mutant switches known defects on, so that the drill can be shown to
// catch them by name.
//
// Only a binary built with the tag "mutants" has them: elsewhere [On] is
// constant false, the compiler removes the defect, and no environment variable
// can bring it back.
package mutant

// On reports whether the named defect is wanted. Without the tag: never.
func On(string) bool { return false }
