package index

import (
	"encoding/binary"

	"github.com/backupfs/backupfs/archive"
	"github.com/zeebo/blake3"
)

// The keys. All numbers in them are big-endian, so that badger's order is
// theirs. Every key is versioned: its timestamp is the number of the log record
// that wrote it, and a generation is read at the timestamp of its own record.
//
//	a dir                 Node: a directory's own attributes; gone when it died
//	c hash                place of a content; the newest version counts
//	d dir name            dirent; gone when the name was removed
//	e ino offset          segment of the extents of a file that has many; never changes
//	g number              Generation; gone when it was forgotten
//	h root group          inode number of a hard-link group
//	i ino                 Inode and, of a file that has few, its extents; never changes
//	m                     meta: counters and totals
//	n digest              number of the part of that name
//	p number              archive.Part
//	s source              newest generation of a source
//	x ino name            value of an extended attribute; never changes
//
// A removed key is overwritten by an explicit "gone" value: badger never deletes.
const (
	spaceNode       = 'a'
	spaceContent    = 'c'
	spaceDirent     = 'd'
	spaceSegment    = 'e'
	spaceGeneration = 'g'
	spaceGroup      = 'h'
	spaceInode      = 'i'
	spaceMeta       = 'm'
	spacePartName   = 'n'
	spacePart       = 'p'
	spaceSource     = 's'
	spaceXattr      = 'x'
)

const (
	maxName       = 255                  // bytes of a name in a directory, of an extended attribute, of a source
	maxKey        = 1 + 8 + maxName      // the longest key
	idKey         = 1 + 8                // a space and one number: the prefix of everything about it
	maxXattrValue = 64 << 10             // the kernel's limit
	maxTarget     = 64 << 10             // bytes of a symlink's target; the kernel's limit is lower
	inlineValue   = 256                  // bytes of most values: a buffer of that size saves an allocation
	maxValue      = maxXattrValue + 4096 // no value is longer
)

func appendID(b []byte, space byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, space), id)
}

func keyID(key []byte) uint64 { return binary.BigEndian.Uint64(key[1:idKey]) }

func appendNodeKey(b []byte, d DirID) []byte { return appendID(b, spaceNode, uint64(d)) }

func appendDirentKey(b []byte, d DirID, name string) []byte {
	return append(appendID(b, spaceDirent, uint64(d)), name...)
}

func appendInodeKey(b []byte, i Ino) []byte { return appendID(b, spaceInode, uint64(i)) }

func appendSegmentKey(b []byte, i Ino, offset int64) []byte {
	return binary.BigEndian.AppendUint64(appendID(b, spaceSegment, uint64(i)), uint64(offset))
}

func appendXattrKey(b []byte, i Ino, name string) []byte {
	return append(appendID(b, spaceXattr, uint64(i)), name...)
}

func appendContentKey(b []byte, h archive.Hash) []byte {
	return append(append(b, spaceContent), h[:]...)
}

func appendPartNameKey(b []byte, d archive.Digest) []byte {
	return append(append(b, spacePartName), d[:]...)
}

func appendSourceKey(b []byte, source string) []byte {
	return append(append(b, spaceSource), source...)
}

// appendGroupKey appends the key of a hard-link group of the tree under root.
// Half of the BLAKE3 of its name stands in for that, which has up to 255 bytes.
func appendGroupKey(b []byte, root DirID, group string) []byte {
	sum := blake3.Sum256([]byte(group))
	return append(appendID(b, spaceGroup, uint64(root)), sum[:16]...)
}
