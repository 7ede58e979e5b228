package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
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

// A Manifest says what is in a backup. It is the file manifest.json of its directory,
// beside one file a stream.
type Manifest struct {
	Format  int            `json:"format"`
	Taken   time.Time      `json:"taken"`  // when it was begun
	Server  string         `json:"server"` // version of nats-server
	Streams []BackupStream `json:"streams"`
	Skipped []BackupSkip   `json:"skipped"` // what JetStream cannot copy
}

// A BackupStream is a stream in a backup. Events that come while it is copied may be in
// it or not, so of Messages and Last there may be more than is said.
type BackupStream struct {
	Name     string          `json:"name"`
	File     string          `json:"file"`
	Bytes    int64           `json:"bytes"` // of File
	SHA256   string          `json:"sha256"`
	Messages uint64          `json:"messages"`
	First    uint64          `json:"first_sequence"`
	Last     uint64          `json:"last_sequence"`
	Groups   []string        `json:"groups"` // names of consumers that were there before and after it
	Config   json.RawMessage `json:"config"` // nats-server's
	State    json.RawMessage `json:"state"`
}

// A BackupSkip is a stream that is not in a backup.
type BackupSkip struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Names in and around a backup.
const (
	backupFormat   = 1
	manifestFile   = "manifest.json"
	snapshotSuffix = ".snapshot"
)

// How the server is spoken to.
const (
	apiWithin     = 10 * time.Second
	chunkWithin   = 30 * time.Second // between two parts of a stream
	chunkSize     = 128 << 10
	snapshotAPI   = "$JS.API.STREAM.SNAPSHOT."
	restoreAPI    = "$JS.API.STREAM.RESTORE."
	restoreWithin = 10 * time.Minute // of what the server does at the end of a stream
	verifyWithin  = time.Minute
	verifyAgain   = 100 * time.Millisecond
)

// Backup copies all streams of a server with their groups and what these have settled
// into dir, which it makes: with mode 0700, its files with 0600. The server works
// meanwhile; each stream is copied as it is at one instant, and of later events some may
// be in it. dir appears whole and on disk, or not at all. The error names the stream, or
// the file that could not be written.
//
// Streams that are kept in memory are skipped, and named in the Manifest.
func Backup(ctx context.Context, nc *nats.Conn, dir string) (*Manifest, error) {
	m, err := backup(ctx, nc, dir)
	if err != nil {
		return nil, fmt.Errorf("hub: backup: %w", err)
	}
	return m, nil
}

func backup(ctx context.Context, nc *nats.Conn, dir string) (_ *Manifest, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is there already (%v): name a directory that is not", dir, cmpErr(err))
	}
	parent := filepath.Dir(dir)
	part, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".partial-") // mode 0700
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	m := &Manifest{Format: backupFormat, Taken: time.Now().UTC(), Server: nc.ConnectedServerVersion(), Streams: []BackupStream{}, Skipped: []BackupSkip{}}
	if err := m.copyAll(ctx, nc, part); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := writeSynced(filepath.Join(part, manifestFile), append(text, '\n')); err != nil {
		return nil, err
	}
	if err := syncDir(part); err != nil {
		return nil, err
	}
	// Onto an empty directory, which somebody may have made meanwhile, it would work too.
	if err := os.Rename(part, dir); err != nil {
		return nil, err
	}
	return m, syncDir(parent)
}

// cmpErr is what there is instead of an error.
func cmpErr(err error) any {
	if err == nil {
		return "a backup is never written over"
	}
	return err
}

func (m *Manifest) copyAll(ctx context.Context, nc *nats.Conn, dir string) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	var infos []*jetstream.StreamInfo
	list := js.ListStreams(ctx)
	for info := range list.Info() {
		infos = append(infos, info)
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("list streams: %w", err)
	}
	slices.SortFunc(infos, func(a, b *jetstream.StreamInfo) int { return strings.Compare(a.Config.Name, b.Config.Name) })
	for i, info := range infos {
		name := info.Config.Name
		if info.Config.Storage == jetstream.MemoryStorage {
			m.Skipped = append(m.Skipped, BackupSkip{name, "it is kept in memory, of which JetStream makes no copies"})
			continue
		}
		// The number keeps apart what a file system without cases would not.
		s := BackupStream{Name: name, File: fmt.Sprintf("%03d-%s%s", i+1, name, snapshotSuffix)}
		before, err := groups(ctx, js, name)
		if err == nil {
			err = s.copy(ctx, nc, filepath.Join(dir, s.File))
		}
		if err == nil {
			s.Groups, err = groups(ctx, js, name)
		}
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		s.Groups = slices.DeleteFunc(s.Groups, func(g string) bool { return !slices.Contains(before, g) })
		m.Streams = append(m.Streams, s)
	}
	return nil
}

// groups are the names of a stream's durable consumers.
func groups(ctx context.Context, js jetstream.JetStream, stream string) ([]string, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	names := []string{}
	list := s.ListConsumers(ctx)
	for info := range list.Info() {
		if info.Config.Durable != "" {
			names = append(names, info.Name)
		}
	}
	slices.Sort(names)
	return names, list.Err()
}

// An apiError is what JetStream answers with.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%s (%d)", e.Description, e.ErrCode) }

// callAPI asks the server and reads its answer into v.
func callAPI(ctx context.Context, nc *nats.Conn, subject string, body []byte, within time.Duration, v any) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	reply, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return fmt.Errorf("the server does not answer %s: %w", subject, err)
	}
	var failed struct {
		Error *apiError `json:"error"`
	}
	if len(reply.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(reply.Data, &failed); err != nil {
		return fmt.Errorf("the server's answer to %s cannot be read: %w", subject, err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(reply.Data, v)
}

// copy writes the stream to a file.
func (s *BackupStream) copy(ctx context.Context, nc *nats.Conn, path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	// The server waits for what it has sent to be written; nothing may be dropped here.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{"deliver_subject": inbox, "jsck": true, "chunk_size": chunkSize})
	if err != nil {
		return err
	}
	var begun struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	// All messages are checked before it answers.
	if err := callAPI(ctx, nc, snapshotAPI+s.Name, body, restoreWithin, &begun); err != nil {
		return err
	}
	s.Config, s.State = begun.Config, begun.State
	var state struct {
		Messages uint64 `json:"messages"`
		First    uint64 `json:"first_seq"`
		Last     uint64 `json:"last_seq"`
	}
	if err := json.Unmarshal(begun.State, &state); err != nil {
		return fmt.Errorf("the server's state of it cannot be read: %w", err)
	}
	s.Messages, s.First, s.Last = state.Messages, state.First, state.Last
	if err := receive(ctx, sub, io.MultiWriter(f, sum)); err != nil {
		return err
	}
	return s.finish(f, sum)
}

func (s *BackupStream) finish(f *os.File, sum hash.Hash) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return errors.New("the server sent nothing of it")
	}
	s.Bytes, s.SHA256 = st.Size(), hex.EncodeToString(sum.Sum(nil))
	return f.Sync()
}

// receive writes the parts that the server sends, up to the empty one at the end.
func receive(ctx context.Context, sub *nats.Subscription, to io.Writer) error {
	for n := 1; ; n++ {
		part, cancel := context.WithTimeout(ctx, chunkWithin)
		m, err := sub.NextMsgWithContext(part)
		cancel()
		if err != nil {
			return fmt.Errorf("part %d did not come: %w", n, err)
		}
		if len(m.Data) == 0 {
			// 204 is an end without an error; older servers have no header.
			if status := m.Header.Get("Status"); status != "" && status != "204" {
				return fmt.Errorf("the server gave up after %d parts: %s %s", n-1, status, m.Header.Get("Description"))
			}
			return nil
		}
		if m.Reply != "" {
			if index, err := strconv.Atoi(m.Reply[strings.LastIndexByte(m.Reply, '.')+1:]); err == nil && index != n {
				return fmt.Errorf("part %d is followed by part %d: the ones between were lost", n-1, index)
			}
		}
		if _, err := to.Write(m.Data); err != nil {
			return err
		}
		if m.Reply == "" {
			continue // the last one
		}
		if err := m.Respond(nil); err != nil {
			return err
		}
	}
}

// writeSynced makes a file that is on disk when it returns.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir has the names in a directory on disk.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
