//go:build unix

package sdnotify

// Lines are the datagrams of a report.
func (r Report) Lines() ([]string, error) { return r.lines() }
