package hub

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// userDir holds a file for each user, as natsbus reads it: NAME:SECRET.
func (d *dir) userDir() string { return filepath.Join(d.path, "users") }

func (d *dir) userFile(name string) string { return filepath.Join(d.userDir(), name) }

// userSecret is a user's. It is made when there is none, and kept.
func (d *dir) userSecret(name string) (string, error) {
	file := d.userFile(name)
	s, err := readSecret(file)
	if errors.Is(err, fs.ErrNotExist) {
		s = name + ":" + newSecret()
		err = writeSecret(file, s)
	}
	if err != nil {
		return "", err
	}
	user, secret, ok := strings.Cut(s, ":")
	if !ok || user != name || len(secret) < 16 || strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("%s does not hold %s: and a secret of at least 16 characters: write that, or remove the file and a new one is made", file, name)
	}
	return secret, nil
}

// readSecret reads a file that only its owner can read.
func readSecret(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %w", err)
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others (mode %04o): run chmod 600 %s; if others may have read it, remove it and a new one is made", name, perm, name)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %w", err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("%s is empty: remove it and a new one is made", name)
	}
	return s, nil
}

// newSecret is 32 random bytes.
func newSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// writeSecret makes a file that appears whole and with its final mode, or not at all.
func writeSecret(name, s string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of secrets: %w", err)
	}
	if err := renameio.WriteFile(name, []byte(s+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot write the secret: %w", err)
	}
	return nil
}
