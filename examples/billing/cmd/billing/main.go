// Command billing runs the example application of package billing.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/tidings-go/tidings/examples/billing"
)

func main() {
	if err := billing.Run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "billing:", err)
		os.Exit(1)
	}
}
