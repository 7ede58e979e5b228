// Command shop runs the example application of package shop.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/tidings-go/tidings/examples/shop"
)

func main() {
	if err := shop.Run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}
