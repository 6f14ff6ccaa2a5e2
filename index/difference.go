package index

import (
	"encoding/binary"
	"slices"

	"github.com/backupfs/backupfs/archive"
	"github.com/zeebo/blake3"
)

// Difference says in what two states of a path differ.
type Difference struct {
	Type    bool // and nothing else is compared then
	Content bool // bytes of a file, or where its holes are
	Size    bool // of a file
	Mode    bool
	Owner   bool // user or group
	Mtime   bool
	Target  bool // of a symlink
	Device  bool // the number of a device
	Xattrs  bool // extended attributes, ACLs among them
}

// Any reports whether there is a difference.
func (d Difference) Any() bool { return d != Difference{} }

// Names returns what differs, in words.
func (d Difference) Names() []string {
	var names []string
	for _, n := range []struct {
		differs bool
		name    string
	}{{d.Type, "type"}, {d.Content, "content"}, {d.Size, "size"}, {d.Target, "target"}, {d.Device, "device"},
		{d.Mode, "mode"}, {d.Owner, "owner"}, {d.Mtime, "mtime"}, {d.Xattrs, "xattrs"}} {
		if n.differs {
			names = append(names, n.name)
		}
	}
	return names
}

// Compare compares two entries. What says nothing about the entry itself makes
// no difference: the name, the inode number and its time of change at the
// source, the number of links, the size of a directory, what is in it.
func (d *DB) Compare(a, b Dirent) (Difference, error) {
	diff := compareAttr(a.Attr, b.Attr)
	if a.Ino == b.Ino || diff.Type {
		return diff, nil
	}
	err := d.compareInodes(&diff, a, b)
	return diff, err
}

// same is Compare for who wants no details: it reads as little as it can.
func (d *DB) same(a, b Dirent) (bool, error) {
	diff := compareAttr(a.Attr, b.Attr)
	if a.Ino == b.Ino || diff.Any() {
		return !diff.Any(), nil
	}
	err := d.compareInodes(&diff, a, b)
	return !diff.Any(), err
}

func compareAttr(a, b archive.Attr) Difference {
	if a.Type != b.Type {
		return Difference{Type: true}
	}
	return Difference{
		Size:   a.Type == archive.TypeFile && a.Size != b.Size,
		Mode:   a.Mode != b.Mode,
		Owner:  a.UID != b.UID || a.GID != b.GID,
		Mtime:  a.Mtime != b.Mtime,
		Device: a.Rdev != b.Rdev,
	}
}

// compareInodes completes a difference by what only the inodes tell.
func (d *DB) compareInodes(diff *Difference, a, b Dirent) error {
	xattrs, err := d.Xattrs(a.Ino)
	if err != nil {
		return err
	}
	others, err := d.Xattrs(b.Ino)
	if err != nil {
		return err
	}
	diff.Xattrs = !slices.Equal(xattrs, others)
	switch a.Attr.Type {
	case archive.TypeSymlink:
		return d.compareTargets(diff, a, b)
	case archive.TypeFile:
		return d.compareContents(diff, a, b)
	}
	return nil
}

func (d *DB) compareTargets(diff *Difference, a, b Dirent) error {
	i, err := d.Inode(a.Ino)
	if err != nil {
		return err
	}
	j, err := d.Inode(b.Ino)
	diff.Target = i.Target != j.Target
	return err
}

func (d *DB) compareContents(diff *Difference, a, b Dirent) error {
	if diff.Content = diff.Size; diff.Content {
		return nil
	}
	i, _, err := d.ContentHash(a.Ino)
	if err != nil {
		return err
	}
	j, _, err := d.ContentHash(b.Ino)
	diff.Content = i != j
	return err
}

// ContentHash returns a hash of what a file holds. whole says that it is the
// BLAKE3 of the file's bytes: of an empty one, and of one that is a single
// content. Of any other it is the BLAKE3 of its size and of the offset, length
// (8 bytes each, big-endian) and hash of each extent. Files of equal hashes hold
// the same; of those that do not, some may.
func (d *DB) ContentHash(i Ino) (hash archive.Hash, whole bool, err error) {
	node, err := d.inode(i)
	if err != nil {
		return hash, false, err
	}
	size := node.Attr.Size
	b := binary.BigEndian.AppendUint64(nil, uint64(size))
	h := blake3.New()
	h.Write(b)
	err = d.spans(i, node, 0, func(e archive.Extent) bool {
		if e.Offset == 0 && e.Len == size {
			hash, whole = e.Hash, true
			return false
		}
		b = binary.BigEndian.AppendUint64(b[:0], uint64(e.Offset))
		b = binary.BigEndian.AppendUint64(b, uint64(e.Len))
		h.Write(append(b, e.Hash[:]...))
		return true
	})
	switch {
	case size == 0:
		return archive.HashOf(nil), true, err
	case !whole:
		h.Sum(hash[:0])
	}
	return hash, whole, err
}
