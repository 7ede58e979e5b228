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

// So does what the guide to processes shows of workers in other languages.
func TestGuideQuotesItsWorkers(t *testing.T) {
	guide, err := os.ReadFile("docs/processes.md")
	if err != nil {
		t.Fatal(err)
	}
	for language, file := range map[string]string{"sh": "worker.sh", "python": "worker.py"} {
		code, err := os.ReadFile("examples/workers/" + file)
		if err != nil {
			t.Fatal(err)
		}
		block := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(guide)
		if block == nil || !strings.Contains(string(code), string(block[1])) {
			t.Errorf("not in examples/workers/%s:\n%s", file, block)
		}
	}
}
