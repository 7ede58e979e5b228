package main

import "github.com/tidings-go/tidings/supervisor"

type execCmd struct {
	Args []string `arg:"" passthrough:"" optional:""`
}

func (c execCmd) Run() error { return supervisor.ExecStub(c.Args) }
