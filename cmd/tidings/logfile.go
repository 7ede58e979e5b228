package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// A logFile is appended to, and can be opened again after it was renamed. Its
// methods may be called concurrently.
type logFile struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.Reopen()
}

// Reopen opens the file of that name, which may be another one by now. If it
// cannot, what was open stays so.
func (l *logFile) Reopen() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		err = l.f.Close()
	}
	l.f = f
	return err
}

// Write appends p in one piece, so that two masters can share the file.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Write(p)
}

// reopenAll reports all that fail.
func reopenAll(files []*logFile) error {
	errs := make([]error, len(files))
	for i, f := range files {
		errs[i] = f.Reopen()
	}
	return errors.Join(errs...)
}
