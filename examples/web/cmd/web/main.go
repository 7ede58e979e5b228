// Command web runs the example of docs/instrumenting.md, by itself or as a worker:
//
//	go run ./examples/web/cmd/web
//	curl http://127.0.0.1:8090/items/1
//	curl http://127.0.0.1:8090/metrics
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/web"
)

func main() {
	if err := web.Run(context.Background(), tidings.Default(), "127.0.0.1:8090"); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}
