package fs

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/backupfs/backupfs/index"
)

// Node ids are computed, so that the kernel's references need no memory here:
//
//	1                                 the root of the mount
//	256 … 1<<62-1                     a file of any type but directory: its index.Ino
//	1<<62 | hash                      a directory that lists a source's generations, by a hash of its name
//	1<<62 | 1<<60 | hash              a directory below ".versions", by a hash of its path
//	1<<62 | 1<<61 | generation        the symlink "latest" to that generation
//	1<<63 | generation<<40 | DirID    a directory in a generation
//	1<<63 | … | 1<<39 | d<<34 | DirID the same one, reached through a version that lies d names deep below ".versions"
//	1<<63 | … | n<<34 | DirID         the same one, reached through a date, or another name of n bytes that is not listed
//
// A file that did not change is the same node in every generation and shares
// the kernel's page cache; a directory is another node in each, because tools
// like `diff -r` take two directories of one inode number for equal. It is another
// one below ".versions", and below each date, because the kernel knows a directory by one
// path only: it would move the one in the generation away from who is in it, to a path
// that leads to another generation one day. d and n are counted modulo 32 and 31, so paths
// share a directory where names are longer than any date, or lie that deep, and so do two
// names of one length, which a generation may have under a format of names. A symlink "latest" that moves on is another node, so its cached target never lies.
//
// A node has the same id in every mount of the repository, so file handles of it
// outlive the mount; only those below ".versions" and below a date do not.
const (
	rootNode  = 1
	dirFlag   = 1 << 63
	synthFlag = 1 << 62
	linkFlag  = 1 << 61
	pathFlag  = 1 << 60
	dirBits   = 40
	viaBits   = 34
	viaFlag   = 1 << 39
	viaMask   = 1<<dirBits - 1<<viaBits
	maxDir    = 1<<viaBits - 1
	// maxGeneration is the greatest generation number that fits. The one above
	// is left out: together with the greatest DirID it is the id that go-fuse
	// keeps for itself.
	maxGeneration = 1<<23 - 2
)

// dirNode returns the node id of a directory in a generation ≤ maxGeneration.
func dirNode(generation uint64, dir index.DirID) uint64 {
	return dirFlag | generation<<dirBits | uint64(dir)
}

// splitDirNode is the inverse of dirNode, with bits of viaMask or without. It is false for
// every other node.
func splitDirNode(node uint64) (generation uint64, dir index.DirID, ok bool) {
	return node &^ dirFlag >> dirBits, index.DirID(node & maxDir), node&dirFlag != 0
}

// viaName returns what the nodes below a name that is not listed have in viaMask.
func viaName(name string) uint64 { return uint64(1+(len(name)-1)%31) << viaBits }

// viaVersion returns what the nodes below a version of a path have in viaMask. depth is
// how many names the path has.
func viaVersion(depth int) uint64 { return viaFlag | uint64(depth%32)<<viaBits }

// fileInode returns the inode of a node that is a file of any type but
// directory. It is false for every other node.
func fileInode(node uint64) (index.Ino, bool) {
	ino := index.Ino(node)
	return ino, ino >= index.FirstIno && node < synthFlag
}

// linkNode returns the node id of the symlink "latest" to a generation.
func linkNode(generation uint64) uint64 { return synthFlag | linkFlag | generation }

// splitLinkNode is the inverse of linkNode. It is false for every other node.
func splitLinkNode(node uint64) (generation uint64, ok bool) {
	const flags = synthFlag | linkFlag
	return node &^ flags, node&dirFlag == 0 && node&flags == flags
}

// pathNodeID returns the node id of a directory below ".versions" whose path has
// that hash.
func pathNodeID(hash uint64) uint64 { return synthFlag | pathFlag | hash&(pathFlag-1) }

// isPathNode reports whether a node is a directory below ".versions".
func isPathNode(node uint64) bool {
	return node&(dirFlag|synthFlag|linkFlag|pathFlag) == synthFlag|pathFlag
}

// sourceNode returns the node id of the directory of a source.
func sourceNode(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return synthFlag | binary.BigEndian.Uint64(sum[:])&(pathFlag-1)
}

// listingNode returns the node id of the directory that lists a source's
// generations, where only is the one source that the mount shows, "" for all.
func listingNode(source, only string) uint64 {
	if source == only {
		return rootNode
	}
	return sourceNode(source)
}

func checkDirectories(last index.DirID) error {
	if last > maxDir {
		return fmt.Errorf("directory %d: a mount shows numbers up to %d", last, uint64(maxDir))
	}
	return nil
}

func checkGenerationNumber(number uint64) error {
	if number > maxGeneration {
		return fmt.Errorf("generation %d: a mount shows numbers up to %d", number, maxGeneration)
	}
	return nil
}
