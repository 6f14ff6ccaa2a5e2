package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// The kernel comes to a node by its id alone where somebody has a file handle of
// it: an NFS server, or who calls open_by_handle_at(2). If it has forgotten the
// node meanwhile, or is another one than then, it looks up "." in it, and in a
// directory "..", to find the way up to the root (FUSE_EXPORT_SUPPORT in
// linux/fuse.h; fuse_get_dentry and fuse_get_parent in its fs/fuse/inode.c). On the
// way it lists each directory for the name of the one it came from.
//
// It never finds the way through ".versions" or a date, which are not listed.

// isDot reports whether a name is one that only who has a file handle looks up.
func isDot(name string) bool { return name == "." || name == ".." }

// lookupDot answers for the names "." and "..".
func (s *server) lookupDot(node uint64, name string, out *fuse.EntryOut) fuse.Status {
	if name == ".." {
		var status fuse.Status
		if node, status = s.parent(node); !status.Ok() {
			return status
		}
	}
	return s.setNodeEntry(out, node)
}

// parent returns the directory that another one lies in.
func (s *server) parent(node uint64) (uint64, fuse.Status) {
	if s.isListing(node) {
		return rootNode, fuse.OK
	}
	if isPathNode(node) {
		return 0, errStale
	}
	d, status := s.directory(node)
	if !status.Ok() {
		return 0, status
	}
	defer d.release()
	if d.via != 0 {
		return 0, errStale
	}
	dir, err := d.view().Dir(d.dir)
	switch {
	case err != nil:
		return 0, s.failDir("lookup of the parent", node, err)
	case s.m.pinned.Number != 0 && (dir.Parent == 0 || dir.Parent == s.m.pinned.Root):
		return rootNode, fuse.OK
	case dir.Parent != 0:
		return dirNode(d.generation, dir.Parent), fuse.OK
	}
	return listingNode(d.generations[d.generation].Source, s.m.options.Source), fuse.OK
}

// setNodeEntry fills in an entry that is any node.
func (s *server) setNodeEntry(out *fuse.EntryOut, node uint64) fuse.Status {
	out.NodeId = node
	if node != rootNode {
		out.Generation = 1 // the kernel has given the root the other one
	}
	valid, status := s.attr(node, &out.Attr)
	out.SetAttrTimeout(valid)
	return status
}
