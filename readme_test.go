package tidings_test

import (
	"os"
	"strings"
	"testing"
)

// The README's first example is examples/hello, which is compiled.
func TestReadmeShowsWhatCompiles(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	hello, err := os.ReadFile("examples/hello/main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(hello), "\npackage main")
	if !strings.Contains(string(readme), "package main"+code) {
		t.Error("README.md and examples/hello/main.go differ")
	}
}
