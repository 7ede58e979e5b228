package natsbus

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidings-go/tidings/internal/bytesize"
)

// What a stream of ours is made with, unless it is declared otherwise.
const (
	streamMaxBytes = 1 << 30
	streamMinBytes = 16 << 20 // below it a server has no room worth using
	dedupWindow    = 2 * time.Minute
)

// Settings of a stream that an app, or a file for "tidings apply", may declare.
// A zero field is no opinion: what the stream has stays. There is no maximal age,
// because it would discard what a group has not seen.
type Settings struct {
	MaxBytes   int64         `json:"max_bytes,omitempty"`
	MaxMsgs    int64         `json:"max_msgs,omitempty"`
	Replicas   int           `json:"replicas,omitempty"`
	Duplicates time.Duration `json:"duplicates,omitempty"` // how long ids are remembered
}

var settingKeys = []string{"max-bytes", "max-msgs", "replicas", "duplicates"}

// Set sets what a file or URL calls key.
func (s *Settings) Set(key, value string) (err error) {
	switch key {
	case "max-bytes":
		s.MaxBytes, err = bytesize.Parse(value)
	case "max-msgs":
		s.MaxMsgs, err = strconv.ParseInt(value, 10, 64)
		if err != nil || s.MaxMsgs <= 0 {
			err = errors.New("want a number of events above 0")
		}
	case "replicas":
		s.Replicas, err = strconv.Atoi(value)
		if err != nil || s.Replicas < 1 || s.Replicas > 5 {
			err = errors.New("want 1 to 5")
		}
	case "duplicates":
		s.Duplicates, err = time.ParseDuration(value)
		if err != nil || s.Duplicates < 100*time.Millisecond {
			err = errors.New("want a duration of at least 100ms, like 2m")
		}
	default:
		return unknownKey(key, settingKeys)
	}
	if err != nil {
		return fmt.Errorf("%s is %q: %w", key, value, err)
	}
	return nil
}

func formatSize(n int64) string {
	if n <= 0 {
		return "unlimited"
	}
	return bytesize.Format(n)
}

func formatCount(n int64) string {
	if n <= 0 {
		return "unlimited"
	}
	return strconv.FormatInt(n, 10)
}

// unknownKey names the known key that is nearest.
func unknownKey(key string, known []string) error {
	near := slices.MinFunc(known, func(a, b string) int { return distance(key, a) - distance(key, b) })
	if distance(key, near) > max(len(near)/2, 2) {
		return fmt.Errorf("unknown key %q; known are %s", key, strings.Join(known, ", "))
	}
	return fmt.Errorf("unknown key %q; did you mean %q? Known are %s", key, near, strings.Join(known, ", "))
}

// distance is how many letters must be changed, added or taken to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// A Difference is between what a stream is and what it should be.
type Difference struct {
	Setting string `json:"setting"`
	Have    string `json:"have"`
	Want    string `json:"want"`
	Fixed   bool   `json:"fixed"` // cannot be changed while the stream lives
}

func (d Difference) String() string {
	return fmt.Sprintf("%s is %s, should be %s", d.Setting, d.Have, d.Want)
}

// settle returns cfg with all that can be changed as it should be, and what
// differed. The promises need some settings whatever is declared: that a full
// stream refuses instead of forgetting, that nothing grows too old, that what
// one group has handled stays for the others.
func (s Settings) settle(cfg jetstream.StreamConfig) (jetstream.StreamConfig, []Difference) {
	var diffs []Difference
	differ := func(setting, have, want string, fixed bool) {
		diffs = append(diffs, Difference{setting, have, want, fixed})
	}
	if cfg.Storage != jetstream.FileStorage {
		differ("storage", cfg.Storage.String(), jetstream.FileStorage.String(), true)
	}
	if cfg.Retention == jetstream.WorkQueuePolicy {
		differ("retention", cfg.Retention.String(), jetstream.LimitsPolicy.String(), true)
	} else if cfg.Retention != jetstream.LimitsPolicy {
		differ("retention", cfg.Retention.String(), jetstream.LimitsPolicy.String(), false)
		cfg.Retention = jetstream.LimitsPolicy
	}
	if cfg.Mirror != nil {
		differ("mirror", "of "+cfg.Mirror.Name, "none", true)
	}
	if cfg.Sealed {
		differ("sealed", "true", "false", true)
	}
	if cfg.Discard != jetstream.DiscardNew {
		differ("discard", cfg.Discard.String(), jetstream.DiscardNew.String(), false)
		cfg.Discard = jetstream.DiscardNew
	}
	if cfg.MaxAge != 0 {
		differ("max_age", cfg.MaxAge.String(), "unlimited", false)
		cfg.MaxAge = 0
	}
	if cfg.MaxMsgsPerSubject > 0 {
		differ("max_msgs_per_subject", formatCount(cfg.MaxMsgsPerSubject), "unlimited", false)
		cfg.MaxMsgsPerSubject, cfg.DiscardNewPerSubject = 0, false
	}
	if s.MaxBytes != 0 && s.MaxBytes != cfg.MaxBytes {
		differ("max_bytes", formatSize(cfg.MaxBytes), formatSize(s.MaxBytes), false)
		cfg.MaxBytes = s.MaxBytes
	}
	if s.MaxMsgs != 0 && s.MaxMsgs != cfg.MaxMsgs {
		differ("max_msgs", formatCount(cfg.MaxMsgs), formatCount(s.MaxMsgs), false)
		cfg.MaxMsgs = s.MaxMsgs
	}
	if s.Replicas != 0 && s.Replicas != cfg.Replicas {
		differ("replicas", strconv.Itoa(cfg.Replicas), strconv.Itoa(s.Replicas), false)
		cfg.Replicas = s.Replicas
	}
	if s.Duplicates != 0 && s.Duplicates != cfg.Duplicates {
		differ("duplicates", cfg.Duplicates.String(), s.Duplicates.String(), false)
		cfg.Duplicates = s.Duplicates
	}
	return cfg, diffs
}

// fixed puts what cannot be changed side by side.
func fixed(stream string, diffs []Difference) error {
	var say []string
	for _, d := range diffs {
		if d.Fixed {
			say = append(say, d.String())
		}
	}
	if say == nil {
		return nil
	}
	return fmt.Errorf("stream %s cannot be changed to what durable routes need: %s: give it other subjects, or copy what it holds and remove it with \"nats stream rm %s\"",
		stream, strings.Join(say, "; "), stream)
}
