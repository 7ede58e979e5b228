package tidings_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every block of Go in the guide stands in the example that it is about.
func TestGuideQuotesItsExample(t *testing.T) {
	guide, err := os.ReadFile("docs/instrumenting.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("examples/web/*.go")
	files = append(files, "examples/web/cmd/web/main.go")
	if err != nil || len(files) < 4 {
		t.Fatalf("the example's files: %v, %v", files, err)
	}
	var code strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(data)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(guide), -1)
	if len(blocks) < 5 {
		t.Fatalf("%d blocks of Go", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(code.String(), b[1]) {
			t.Errorf("not in examples/web:\n%s", b[1])
		}
	}
}
