package synctrace_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/internal/synctrace"
)

const (
	block  = "7</d/jetstream/$G/streams/S/msgs/1.blk>"
	second = "8</d/jetstream/$G/streams/S/msgs/2.blk>"
	conn   = "9<TCP:[127.0.0.1:4222->127.0.0.1:50000]>"
)

// record is what nats-server writes of a message, as strace shows it.
func record(seq uint64, payload string) string {
	const subject = "s"
	b := binary.LittleEndian.AppendUint32(nil, uint32(4+8+8+2+len(subject)+len(payload)+8))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(subject)))
	b = append(b, subject+payload+"checksum"...)
	return quote(string(b))
}

// quote writes a string as strace does.
func quote(s string) string {
	var out strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out.WriteByte('\\')
			out.WriteByte(c)
		case c == '\n':
			out.WriteString(`\n`)
		case c >= ' ' && c <= '~':
			out.WriteByte(c)
		case i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '7':
			fmt.Fprintf(&out, `\%03o`, c)
		default:
			fmt.Fprintf(&out, `\%o`, c)
		}
	}
	return `"` + out.String() + `"`
}

func wrote(file string, seq uint64) string {
	r := record(seq, fmt.Sprint("payload ", seq, ` 7) = 3 "<unfinished ...>`))
	return fmt.Sprintf("pwrite64(%s, %s, %d, 100) = %d", file, r, size(r), size(r))
}

// size is how many bytes a quoted string is.
func size(quoted string) (n int) {
	s := quoted[1 : len(quoted)-1]
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; s[i] >= '0' && s[i] <= '7' {
				for k := 1; k < 3 && i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '7'; k++ {
					i++
				}
			}
		}
		n++
	}
	return n
}

func acked(seq int) string { return sent(fmt.Sprintf(`{"stream":"S", "seq":%d}`, seq)) }

func sent(text string) string {
	return fmt.Sprintf("write(%s, %s, %d) = %d", conn, quote(text), len(text), len(text))
}

// batch is the beginning of a batch's acknowledgement of 3 messages.
const batch = `MSG _INBOX.1 1 60` + "\r\n" + `{"stream":"S","seq":3,"batch":"b","count":3}`

func TestCheck(t *testing.T) {
	sync := "fsync(" + block + ") = 0"
	for _, c := range []struct {
		name             string
		lines            []string
		acks, violations int
		why              string
		fails            string
	}{
		{name: "nothing", lines: []string{}},
		{name: "in order", lines: []string{wrote(block, 1), sync, acked(1)}, acks: 1},
		{name: "fdatasync", lines: []string{wrote(block, 1), "fdatasync(" + block + ") = 0", acked(1)}, acks: 1},
		{name: "no sync", lines: []string{wrote(block, 1), acked(1)}, acks: 1, violations: 1, why: "on line 1, and not synced"},
		{name: "sync too late", lines: []string{wrote(block, 1), acked(1), sync}, acks: 1, violations: 1, why: "not synced"},
		{name: "sync too early", lines: []string{sync, wrote(block, 1), acked(1)}, acks: 1, violations: 1, why: "not synced"},
		{name: "sync of another file", lines: []string{wrote(block, 1), "fsync(" + second + ") = 0", acked(1)}, acks: 1, violations: 1},
		{name: "sync that failed", lines: []string{wrote(block, 1), "fsync(" + block + ") = -1 EIO (Input/output error)", acked(1)}, acks: 1, violations: 1},
		{name: "never written", lines: []string{wrote(block, 2), sync, acked(1)}, acks: 1, violations: 1, why: "nothing was written"},
		{name: "written too late", lines: []string{acked(1), wrote(block, 1), sync}, acks: 1, violations: 1, why: "nothing was written"},
		{name: "another stream", lines: []string{strings.Replace(wrote(block, 1), "streams/S", "streams/T", 1), strings.Replace(sync, "streams/S", "streams/T", 1), acked(1)}, acks: 1, violations: 1},
		{name: "one of two", lines: []string{wrote(block, 1), sync, wrote(block, 2), acked(1), acked(2)}, acks: 2, violations: 1},
		{name: "one sync for two", lines: []string{wrote(block, 1), wrote(block, 2), sync, acked(1), acked(2)}, acks: 2},
		{name: "batch", lines: []string{wrote(block, 1), wrote(block, 2), wrote(block, 3), sync, sent(batch)}, acks: 1},
		{name: "batch over two blocks", lines: []string{wrote(block, 1), wrote(block, 2), wrote(second, 3), sync, sent(batch)}, acks: 1, violations: 1, why: "2.blk"},
		{name: "batch without its first", lines: []string{sync, wrote(block, 2), wrote(block, 3), sync, sent(batch)}, acks: 1, violations: 1, why: "nothing"},
		{name: "batch that is only staged", lines: []string{strings.Replace(wrote(block, 1), "streams/S", "streams/S/batches/b", 1), acked(1)}, acks: 1, violations: 1, why: "nothing"},
		{name: "sync that has begun before the write ended", lines: []string{
			cut(wrote(block, 1), "1"), "2 fsync(" + block + " <unfinished ...>", resumed(wrote(block, 1), "1"), "2 <... fsync resumed>) = 0", acked(1)}, acks: 1, violations: 1},
		{name: "sync that has not ended", lines: []string{wrote(block, 1), "2 fsync(" + block + " <unfinished ...>", acked(1), "2 <... fsync resumed>) = 0"}, acks: 1, violations: 1},
		{name: "sync that never ends", lines: []string{wrote(block, 1), "2 fsync(" + block + " <unfinished ...>", acked(1), "2 <... fsync resumed> <unfinished ...>) = ?", "2 +++ killed by SIGKILL +++"}, acks: 1, violations: 1},
		{name: "in order on threads", lines: []string{
			"2 fsync(" + second + " <unfinished ...>", cut(wrote(block, 1), "1"), "2 <... fsync resumed>) = 0", resumed(wrote(block, 1), "1"),
			"1 fsync(" + block + " <unfinished ...>", "2 --- SIGURG {si_signo=SIGURG} ---", "1 <... fsync resumed>) = 0", cut(acked(1), "3"), resumed(acked(1), "3")}, acks: 1},
		{name: "acknowledgement begun before the sync ended", lines: []string{
			wrote(block, 1), cut(acked(1), "3"), sync, resumed(acked(1), "3")}, acks: 1, violations: 1},
		{name: "acknowledgement in pieces", lines: []string{
			sent(`MSG _I 1 2` + "\r\n" + `{"stream":"S"`), wrote(block, 1), sync, sent(`, "seq":1}` + "\r\n")}, acks: 1, violations: 1},
		{name: "acknowledgement of which a part was written", lines: []string{
			wrote(block, 1), sync, fmt.Sprintf("write(%s, %s, 24) = 10", conn, quote(`{"stream":"S", "seq":1}`)), sent(`"S", "seq":1}`)}, acks: 1},
		{name: "acknowledgement that was not written", lines: []string{
			wrote(block, 1), fmt.Sprintf("write(%s, %s, 24) = -1 EAGAIN (Resource temporarily unavailable)", conn, quote(`{"stream":"S", "seq":1}`)), sync, acked(1)}, acks: 1},
		{name: "killed while it wrote", lines: []string{wrote(block, 1), cut(acked(1), "3")}, acks: 1, violations: 1},
		{name: "vector", lines: []string{wrote(block, 1), sync, fmt.Sprintf(`writev(%s, [{iov_base="MSG\r\n", iov_len=5}, {iov_base=%s, iov_len=23}], 2) = 28`, conn, quote(`{"stream":"S", "seq":1}`))}, acks: 1},
		{name: "domain", lines: []string{wrote(block, 1), sync, sent(`{"stream":"S", "domain":"hub", "seq":1}`)}, acks: 1},
		{name: "duplicate", lines: []string{wrote(block, 1), sync, sent(`{"stream":"S", "seq":1,"duplicate": true}`)}, acks: 1},
		{name: "tombstone", lines: []string{wrote(block, 1|1<<62), sync, acked(1)}, acks: 1, violations: 1},
		{name: "other files", lines: []string{`write(1</dev/null>, "x", 1) = 1`, `write(5<anon_inode:[eventfd]>, "\1\0", 2) = 2`, "write(-1, 0x5, 1) = -1 EBADF (Bad file descriptor)"}},

		{name: "cut off", lines: []string{`write(` + conn + `, "abc"..., 500) = 500`}, fails: "larger -s"},
		{name: "no -yy", lines: []string{`write(7, "abc", 3) = 3`}, fails: "-yy"},
		{name: "short write", lines: []string{`pwrite64(` + block + `, "abc", 3, 0) = 2`}, fails: "2 of 3 bytes"},
		{name: "encrypted", lines: []string{`pwrite64(` + block + `, "abcdefghijklmnopqrstuvwxyzabcdefgh", 34, 0) = 34`}, fails: "compressed or encrypted"},
		{name: "no record", lines: []string{`pwrite64(` + block + `, "abc", 3, 0) = 3`}, fails: "compressed or encrypted"},
		{name: "end of nothing", lines: []string{"1 <... fsync resumed>) = 0"}, fails: "has not begun"},
		{name: "twice begun", lines: []string{"1 fsync(" + block + " <unfinished ...>", "1 fsync(" + block + " <unfinished ...>"}, fails: "within another"},
		{name: "half a line", lines: []string{"1 fsync(" + block}, fails: "no end"},
		{name: "prose", lines: []string{"strace: Process 7 attached"}, fails: "no number"},
		{name: "absurd count", lines: []string{sent(`{"stream":"S","seq":3,"count":4}`)}, fails: "cannot be"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := synctrace.Check(strings.NewReader(threaded(c.lines)))
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("the error is %v, want one with %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Acks) != c.acks || len(v.Violations) != c.violations {
				t.Fatalf("%d acknowledgements and violations %v, want %d and %d", len(v.Acks), v.Violations, c.acks, c.violations)
			}
			if c.violations > 0 && !strings.Contains(v.Violations[0].String(), c.why) {
				t.Errorf("the violation is %q, want one with %q", v.Violations[0], c.why)
			}
		})
	}
}

// threaded gives thread 1 to the lines that have none.
func threaded(lines []string) string {
	var out strings.Builder
	for _, l := range lines {
		if l[0] > '9' && !strings.HasPrefix(l, "strace") {
			l = "1 " + l
		}
		out.WriteString(l + "\n")
	}
	return out.String()
}

// cut is the beginning of a call as it is shown if something else happens meanwhile,
// and resumed its end.
func cut(line, thread string) string {
	return thread + " " + line[:strings.LastIndex(line, ") = ")] + " <unfinished ...>"
}

func resumed(line, thread string) string {
	name, _, _ := strings.Cut(line, "(")
	return thread + " <... " + name + " resumed>" + line[strings.LastIndex(line, ") = "):]
}

func TestArgsAreThoseOfTheDoc(t *testing.T) {
	if got := strings.Join(synctrace.Args("FILE"), " "); !strings.Contains(got, "-yy -s 1048576") || !strings.HasSuffix(got, "-o FILE --") {
		t.Errorf("strace's arguments are %s", got)
	}
}

// Whatever is in a trace, it is read or refused; and what is put in front of it does
// not take away an acknowledgement that comes too early.
func FuzzCheck(f *testing.F) {
	f.Add(threaded([]string{wrote(block, 1), "fsync(" + block + ") = 0", acked(1)}))
	f.Add(threaded([]string{cut(wrote(block, 1), "2"), sent(batch), resumed(wrote(block, 1), "2"), "2 +++ exited with 0 +++"}))
	f.Add("1 fsync(" + block + " <unfinished ...>\n2 write(" + conn + `, "\x41\1\777", 3) = ?`)
	f.Fuzz(func(t *testing.T, trace string) {
		before, err := synctrace.Check(strings.NewReader(trace))
		if err != nil {
			return
		}
		const stream = `{"stream":"never seen before", "seq":7}`
		more := strings.TrimSuffix(trace, "\n") + "\n" + "77777777 " + strings.Replace(sent(stream), conn, "99<TCP:[77]>", 1) + "\n"
		after, err := synctrace.Check(strings.NewReader(more))
		if err != nil {
			return // the last line was not whole
		}
		if len(after.Acks) != len(before.Acks)+1 && !strings.Contains(trace, "99<TCP:[77]>") {
			t.Errorf("%d acknowledgements, and with one more %d", len(before.Acks), len(after.Acks))
		}
		if len(after.Violations) <= len(before.Violations) && !strings.Contains(trace, "never seen before") {
			t.Errorf("%d violations, and with one more %d", len(before.Violations), len(after.Violations))
		}
	})
}
