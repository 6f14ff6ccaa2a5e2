// Package treetest declares, creates and compares file trees. It is for tests
// only, and it trusts nothing that it tests: it reads trees with system calls
// relative to directory descriptors, so paths may be longer than PATH_MAX, and
// names are bytes.
//
// A tree is declared as a list of nodes and made by Create; a tree that exists
// is read by Read into a Tree; Diff says how two trees differ. Random makes up
// trees and Editor changes them, both from a seed.
package treetest

import (
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// Type is the type of a node. The zero value is a regular file.
type Type uint8

// The seven file types, and a further name of an earlier node.
const (
	File Type = iota
	Dir
	Symlink
	FIFO
	Socket
	Char
	Block
	HardLink
)

var typeNames = [...]string{File: "file", Dir: "dir", Symlink: "symlink", FIFO: "fifo",
	Socket: "socket", Char: "char", Block: "block", HardLink: "hard link"}

// String returns the name of the type.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return "unknown"
}

// ModeNone declares the permission bits 0000, since the zero value of
// Node.Mode asks for the usual ones.
const ModeNone uint32 = 1 << 31

// Extent is a run of data in a sparse file.
type Extent struct {
	Offset int64
	Data   []byte
}

// Node declares one path of a tree. Parents that are not declared are made as
// directories of mode 0755.
type Node struct {
	Path string // components joined by "/"; "." is the root of the tree
	Type Type
	Mode uint32 // 07777; 0 means 0644 for a file, 0755 for a directory, 0666 for the other types
	UID  uint32
	GID  uint32
	// Mtime is the time of the last change in ns. The zero value leaves the
	// time of creation.
	Mtime time.Time
	// Xattrs are extended attributes by name, namespace included. ACLs are
	// declared as AccessACL and DefaultACL with values made by ACL.
	Xattrs map[string]string

	Data    []byte   // content of a file
	Size    int64    // length of a file; more than len(Data) is a hole, or generated when Seed is set
	Seed    uint64   // not 0: the content is Size bytes of Generate(Seed)
	Extents []Extent // written last, over what is there
	Target  string   // of a symlink, or the path of the earlier node that a HardLink names
	Major   uint32   // of a device
	Minor   uint32
}

// generatedBlock is the unit of generated content. Of four blocks one is text
// that compresses well and three are noise.
const generatedBlock = 64 << 10

// Generate fills b with the bytes at offset of the endless content that seed
// names. The same seed and offset always give the same bytes. Offset must be a
// multiple of 64 KiB.
func Generate(seed uint64, offset int64, b []byte) {
	for len(b) > 0 {
		n := min(len(b), generatedBlock)
		generateBlock(seed, uint64(offset/generatedBlock), b[:n])
		b, offset = b[n:], offset+generatedBlock
	}
}

func generateBlock(seed, block uint64, b []byte) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], block)
	source := rand.NewChaCha8(key)
	if block%4 != 3 {
		_, _ = source.Read(b) // never fails
		return
	}
	var line [64]byte
	_, _ = source.Read(line[:]) // never fails
	for i := range line {
		line[i] = 'a' + line[i]%26
	}
	line[len(line)-1] = '\n'
	for i := range b {
		b[i] = line[i%len(line)]
	}
}

// Content returns size bytes of Generate(seed).
func Content(seed uint64, size int64) []byte {
	b := make([]byte, size)
	Generate(seed, 0, b)
	return b
}
