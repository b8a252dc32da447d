package nutsstore

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCache makes the next reads of a synced file come from the disk. After a failed fsync Linux
// keeps pages that it will never write, and lets the next fsync succeed.
func dropCache(f *os.File) error {
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
