package bytesize

import "testing"

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "1000000": 1e6, "64KiB": 64 << 10, "512MiB": 512 << 20, "4 GiB": 4 << 30, "8388607TiB": 8388607 << 40} {
		if n, err := Parse(s); n != want || err != nil {
			t.Errorf("Parse(%q) is %d, %v; want %d", s, n, err, want)
		}
	}
	for _, s := range []string{"", "0", "-1", "1.5GiB", "4GB", "GiB", "8388608TiB", "9223372036854775808", "1 2", "x"} {
		if n, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) is %d, and no error", s, n)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{1: "1B", 1000: "1000B", 1 << 10: "1KiB", 3 << 20: "3MiB", 4 << 30: "4GiB", 5 << 40: "5TiB"} {
		if got := Format(n); got != want {
			t.Errorf("Format(%d) is %q, want %q", n, got, want)
		}
	}
}
