package main

import (
	"context"
	"fmt"

	"github.com/tidings-go/tidings/examples/billing"
	"github.com/tidings-go/tidings/examples/shop"
)

type exampleCmd struct {
	Name string   `arg:"" help:"shop or billing."`
	Args []string `arg:"" passthrough:"" optional:""`
}

func (c exampleCmd) Run(ctx context.Context) error {
	switch c.Name {
	case "shop":
		return shop.Run(ctx, c.Args)
	case "billing":
		return billing.Run(ctx, c.Args)
	}
	return hinted{fmt.Errorf("there is no example %q", c.Name), "there are shop and billing"}
}
