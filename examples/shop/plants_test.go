package shop

import (
	"strings"
	"testing"

	"github.com/tidings-go/tidings/drill/witness"
)

func TestPlants(t *testing.T) {
	var p plants
	if err := p.Set("panics/10,poison/5,slow@7"); err != nil {
		t.Fatal(err)
	}
	want := map[int]witness.Fate{5: witness.Poison, 7: witness.Slow, 10: witness.Panics, 15: witness.Poison, 20: witness.Panics}
	for n := 1; n <= 20; n++ {
		if got := p.of(n); got != want[n] {
			t.Errorf("%d is %q, want %q", n, got, want[n])
		}
	}
	if s := p.String(); s != "panics/10,poison/5,slow@7" {
		t.Error(s)
	}
	for bad, why := range map[string]string{"slow": "FATE/N", "slow@x": "a number", "slow@0": "a number", "sad/3": "no fate"} {
		if err := new(plants).Set(bad); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", bad, err, why)
		}
	}
}
