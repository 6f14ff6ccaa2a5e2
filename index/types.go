// Package index answers, at any generation, which entries a directory has, what
// their attributes are and where their bytes lie. It is a badger database
// derived from the log and sealed under index/; it can be deleted at any time
// and comes back identical, numbers included.
package index

import (
	"errors"
	"time"

	"github.com/backupfs/backupfs/archive"
)

// ErrNotFound says that the index knows no such entry, inode, content or
// extended attribute. ErrDamaged says that it contradicts itself or one of its
// checksums; a reindex is the remedy.
var (
	ErrNotFound = errors.New("not in the index")
	ErrDamaged  = errors.New("index damaged")
)

// DirID names a directory for life: in every generation of its source that
// follows one another at the same path. Always below 1<<38.
type DirID uint64

// Ino names an immutable state of a file of any type, directories included: its
// attributes, extended attributes and extents never change. Hard links share
// one, an unchanged file has the same one in every generation. Bit 0 tells
// whether it has extended attributes. Always ≥ FirstIno and < 1<<62.
type Ino uint64

// FirstIno is the least inode number that the index gives.
const FirstIno Ino = 1 << 8

// HasXattrs reports whether the inode has extended attributes.
func (i Ino) HasXattrs() bool { return i&1 != 0 }

// Generation describes one generation that was not forgotten.
type Generation struct {
	Number uint64 // of its log record, which is also the read timestamp
	Source string // "" is the unnamed source
	Name   string // "2026-11-22T03-00-00Z"; unique within the source
	Time   time.Time
	Root   DirID // the directory "/"
	Files  int64 // entries that are no directories
	Dirs   int64 // directories
	Raw    int64 // raw bytes of all files, each link counted
}

// Dirent is one entry of a directory.
type Dirent struct {
	Name      string
	Ino       Ino
	Dir       DirID // of a directory; else 0
	Attr      archive.Attr
	DataBytes int64 // of a file: raw bytes that are not holes; else 0
}

// Node is a directory at a generation.
type Node struct {
	Ino      Ino
	Attr     archive.Attr
	Children int   // entries
	Parent   DirID // the directory that it lies in, for life; 0 of a root
}

// Inode is everything about an inode but its extents and extended attributes.
type Inode struct {
	Attr      archive.Attr
	Target    string // of a symlink
	DataBytes int64  // raw bytes that are not holes
	Changed   bool   // the file changed while it was read
	Group     string // hard-link group, as in the log; "" where there are no other links
}

// Extent is a range of a file and where it lies.
type Extent struct {
	Offset    int64 // in the file
	Len       int64 // > 0
	Hash      archive.Hash
	Part      archive.Part
	RawOffset int64 // in the part, of the extent's first byte
}

// WholeFile is a file whose bytes are one content, and where that lies.
type WholeFile struct {
	Ino       Ino
	RawSize   int64 // > 0
	Part      archive.Part
	RawOffset int64 // in the part, of the file's first byte
}

// Place is where a content lies.
type Place struct {
	Part      archive.Part
	RawOffset int64
	RawLen    int64
}
