package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ReadBackup reads what is in a backup, and checks that its files are what was written:
// there, of their length, with their sums. The error names the file.
func ReadBackup(dir string) (*Manifest, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, fmt.Errorf("hub: restore: %w", err)
	}
	for _, s := range m.Streams {
		if err := s.check(dir); err != nil {
			return nil, fmt.Errorf("hub: restore: %w", err)
		}
	}
	return m, nil
}

func readManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, manifestFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s is no backup: %w", dir, err)
	}
	m := &Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s cannot be read, it is cut off or changed: %w", path, err)
	}
	if m.Format != backupFormat {
		return nil, fmt.Errorf("%s is of format %d, and this is for format %d: use the tidings that has written it, or a newer one", path, m.Format, backupFormat)
	}
	for _, s := range m.Streams {
		if s.Name == "" || s.File == "" || filepath.Base(s.File) != s.File {
			return nil, fmt.Errorf("%s: stream %q in file %q: it was changed", path, s.Name, s.File)
		}
	}
	return m, nil
}

// check compares the stream's file with what the manifest says of it.
func (s *BackupStream) check(dir string) error {
	path := filepath.Join(dir, s.File)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("stream %s: %w", s.Name, err)
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	switch {
	case err != nil:
		return fmt.Errorf("stream %s: %w", s.Name, err)
	case n < s.Bytes:
		return fmt.Errorf("stream %s: %s is cut off: %d of %d bytes are there", s.Name, path, n, s.Bytes)
	case n > s.Bytes || hex.EncodeToString(sum.Sum(nil)) != s.SHA256:
		return fmt.Errorf("stream %s: %s is not what was written: its bytes have another SHA-256 sum than %s says", s.Name, path, manifestFile)
	}
	return nil
}

// RestoreOptions: the zero value restores all as it was.
type RestoreOptions struct {
	Streams  []string // only these
	Replicas int      // copies of each stream, in a cluster; 0: as many as it had
}

// Restore puts the streams of a backup into a server, with their groups. It begins only
// when the files are whole and none of the streams is there; nothing is written over.
// Afterwards it checks that the server has as many events, and the groups, as the backup
// says. The error names the stream, and which were restored before it.
func Restore(ctx context.Context, nc *nats.Conn, dir string, o RestoreOptions) (*Manifest, error) {
	m, err := ReadBackup(dir)
	if err != nil {
		return nil, err
	}
	if err := m.restrict(o.Streams); err != nil {
		return nil, fmt.Errorf("hub: restore: %s: %w", dir, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("hub: restore: %w", err)
	}
	if err := m.absent(ctx, js); err != nil {
		return nil, fmt.Errorf("hub: restore: %w", err)
	}
	var restored []string
	for _, s := range m.Streams {
		err := s.restore(ctx, nc, filepath.Join(dir, s.File), o.Replicas)
		if err == nil {
			restored = append(restored, s.Name)
			err = s.verify(ctx, js)
		}
		if err != nil {
			return nil, fmt.Errorf("hub: restore: stream %s: %w (restored before that: %s)", s.Name, err, orNone(restored))
		}
	}
	return m, nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// restrict leaves the streams that are named.
func (m *Manifest) restrict(only []string) error {
	if len(only) == 0 {
		return nil
	}
	var have []string
	for _, s := range m.Streams {
		have = append(have, s.Name)
	}
	for _, name := range only {
		if !slices.Contains(have, name) {
			return fmt.Errorf("it has no stream %s; it has %s", name, orNone(have))
		}
	}
	m.Streams = slices.DeleteFunc(m.Streams, func(s BackupStream) bool { return !slices.Contains(only, s.Name) })
	return nil
}

// absent checks that no stream is there.
func (m *Manifest) absent(ctx context.Context, js jetstream.JetStream) error {
	var there []string
	for _, s := range m.Streams {
		ask, cancel := context.WithTimeout(ctx, apiWithin)
		_, err := js.Stream(ask, s.Name)
		cancel()
		switch {
		case err == nil:
			there = append(there, s.Name)
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return fmt.Errorf("stream %s: JetStream has not answered in %v: it is off, or the cluster has no leader (it is starting, or too many of its servers are away): %w", s.Name, apiWithin, err)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("stream %s: %w", s.Name, err)
		}
	}
	if len(there) > 0 {
		return fmt.Errorf("%s there already, and nothing is written over: restore into another hub, or remove them first", areIs(there))
	}
	return nil
}

func areIs(names []string) string {
	if len(names) == 1 {
		return "stream " + names[0] + " is"
	}
	return "streams " + strings.Join(names, ", ") + " are"
}

// restore sends the stream's file to the server.
func (s *BackupStream) restore(ctx context.Context, nc *nats.Conn, path string, replicas int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var config map[string]json.RawMessage // its fields stay as they are, also those that nats.go does not know
	if err := json.Unmarshal(s.Config, &config); err != nil {
		return err
	}
	if replicas > 0 {
		config["num_replicas"] = strconv.AppendInt(nil, int64(replicas), 10)
	}
	body, err := json.Marshal(map[string]any{"config": config, "state": s.State})
	if err != nil {
		return err
	}
	var to struct {
		Subject string `json:"deliver_subject"`
	}
	if err := callAPI(ctx, nc, restoreAPI+s.Name, body, apiWithin, &to); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	part := make([]byte, min(chunkSize, nc.MaxPayload()))
	for {
		n, err := io.ReadFull(f, part)
		if n > 0 {
			if err := callAPI(ctx, nc, to.Subject, part[:n], chunkWithin, nil); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := callAPI(ctx, nc, to.Subject, nil, restoreWithin, nil); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

// verify compares what the server has now with what was backed up. A cluster answers
// that a stream is restored before each of its nodes has it, and its groups.
func (s *BackupStream) verify(ctx context.Context, js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(ctx, verifyWithin)
	defer cancel()
	var differs error
	for {
		err := s.compare(ctx, js)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || differs == nil {
			differs = err
		}
		select {
		case <-time.After(verifyAgain):
		case <-ctx.Done():
			return differs
		}
	}
}

// compare: events that came while the backup was taken may be there beside.
func (s *BackupStream) compare(ctx context.Context, js jetstream.JetStream) error {
	stream, err := js.Stream(ctx, s.Name)
	if err != nil {
		return err
	}
	got := stream.CachedInfo().State
	if got.LastSeq < s.Last || got.LastSeq == s.Last && (got.Msgs < s.Messages || got.FirstSeq < s.First) {
		return fmt.Errorf("after it was restored it has %d events from %d to %d, and the backup %d from %d to %d", got.Msgs, got.FirstSeq, got.LastSeq, s.Messages, s.First, s.Last)
	}
	have, err := groups(ctx, js, s.Name)
	if err != nil {
		return err
	}
	for _, g := range s.Groups {
		if !slices.Contains(have, g) {
			return fmt.Errorf("after it was restored it has no group %s, which the backup has", g)
		}
	}
	return nil
}
