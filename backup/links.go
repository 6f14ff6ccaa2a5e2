package backup

import (
	"fmt"

	"github.com/backupfs/backupfs/archive"
)

// devices are the names that devices have in hard-link groups. Links that different runs
// store are of one group, but the number of a device (btrfs, ZFS, NFS, a snapshot) may be
// another one after each mount, or that of another file system. So the name is a hash of the
// path, in the generation, of the first directory of the device that the walk meets: the
// same in each run whose mounts are the same, since the walk goes in the order of paths. Where a
// file is met before any directory, as of the layers of overlayfs, whose first file is soon
// another one, the name is the number.
type devices map[uint64]string

// meet names a device, unless it was met before. dir is the path of a directory of it, ""
// where it is met with something else.
func (d devices) meet(dev uint64, dir string) {
	if _, known := d[dev]; known {
		return
	}
	d[dev] = fmt.Sprintf("%x", dev)
	if dir != "" {
		hash := archive.HashOf([]byte(dir))
		d[dev] = fmt.Sprintf("%x", hash[:8])
	}
}

// group returns the hard-link group of an inode, "" where it has no other links.
// Whiteouts of overlayfs share one inode, but are no hard links.
func (d devices) group(i *inode) string {
	if i.Nlink < 2 || i.Type == archive.TypeDir {
		return ""
	}
	d.meet(i.dev, "")
	return d[i.dev] + fmt.Sprintf(":%x", i.Inode)
}
