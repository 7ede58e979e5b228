//go:build !linux && !darwin

package hub

// diskOf does not know; a disk that is full is seen by what cannot be written.
func diskOf(string) (disk, error) { return disk{}, nil }
