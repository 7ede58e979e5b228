//go:build linux || darwin

package hub

import "golang.org/x/sys/unix"

// diskOf is how much room the file system of a directory has, for those who are not
// root, and how much of it is free.
func diskOf(dir string) (disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return disk{}, err
	}
	block := uint64(st.Bsize)
	used := (uint64(st.Blocks) - uint64(st.Bfree)) * block
	free := uint64(st.Bavail) * block
	return disk{total: used + free, free: free}, nil
}
