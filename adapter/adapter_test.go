package adapter_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/adapter"
)

func TestOpen(t *testing.T) {
	mine := errors.New("opened")
	adapter.Register("pigeon", func(_ context.Context, url string, c adapter.Config) (adapter.Adapter, error) {
		if url != "pigeon:loft" || c.App != "shop" {
			t.Errorf("opened with %q, %+v", url, c)
		}
		return nil, mine
	})
	if _, err := adapter.Open(context.Background(), "pigeon:loft", adapter.Config{App: "shop"}); err != mine {
		t.Error(err)
	}
	for _, url := range []string{"", "loft", "raven:loft"} {
		_, err := adapter.Open(context.Background(), url, adapter.Config{})
		if err == nil {
			t.Errorf("%q was opened", url)
		} else if url == "raven:loft" && !strings.Contains(err.Error(), "import") {
			t.Errorf("no way out in %q", err)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a scheme was registered twice")
		}
	}()
	adapter.Register("pigeon", nil)
}
