// Package arch holds the tests that keep the module's shape: which package may
// import which, who may start goroutines, and the like.
//
// It contains no code. Every rule carries its reason and prints it when it is
// broken. A rule about a package that does not exist says nothing.
package arch
