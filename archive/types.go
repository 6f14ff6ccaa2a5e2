// Package archive is what lies on disk: parts, their frames, the log, and the
// store they live in. It knows nothing of the index, of generations as trees or
// of FUSE. docs/FORMAT.md is the exact description of every byte written here.
//
// Two spaces of bytes meet in a part. Raw bytes are those of the tar stream
// before compression; stored bytes are those of the .tar.zst file. Every name
// in this package says which one it counts.
package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// Hash names a content: the BLAKE3-256 digest of its raw bytes.
type Hash [32]byte

// HashOf returns the name of a content.
func HashOf(content []byte) Hash { return blake3.Sum256(content) }

// String returns the hash as 64 lower-case hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler: 64 hexadecimal digits.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error { return unhex(h[:], text) }

// Digest is the SHA-256 of stored bytes: of a whole part (its name), of a
// part's tail, or of a log record. Stock sha256sum computes it.
type Digest [sha256.Size]byte

// String returns the digest as 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler: 64 hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error { return unhex(d[:], text) }

func unhex(dst, text []byte) error {
	if len(text) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("digest of %d characters, want %d", len(text), hex.EncodedLen(len(dst)))
	}
	if slices.ContainsFunc(text, func(c byte) bool { return 'A' <= c && c <= 'F' }) {
		return errors.New("digest in capitals")
	}
	_, err := hex.Decode(dst, text)
	return err
}

// Part describes a published part. It is all that is needed to verify any of
// its bytes: Tail digests the tail, the tail digests every frame.
type Part struct {
	Name       Digest // SHA-256 of the whole file
	Stored     int64  // bytes of the whole file, tail included
	Raw        int64  // bytes of the tar stream, end-of-archive blocks included
	TailStored int64  // bytes of the tail: the last TailStored bytes of the file
	Tail       Digest // SHA-256 of the tail
}

// StoreName returns the name of the part in its store.
func (p Part) StoreName() string { return PartStoreName(p.Name) }

// PartStoreName returns the store name of the part called name:
// "parts/3f/3f9c….tar.zst".
func PartStoreName(name Digest) string {
	s := name.String()
	return "parts/" + s[:2] + "/" + s + ".tar.zst"
}

// ParsePartStoreName returns the name of the part stored as storeName; ok is
// false where that is no part.
func ParsePartStoreName(storeName string) (name Digest, ok bool) {
	text, ok := strings.CutSuffix(path.Base(storeName), ".tar.zst")
	if !ok || name.UnmarshalText([]byte(text)) != nil {
		return Digest{}, false
	}
	return name, PartStoreName(name) == storeName
}

// Content is one content inside a part: the raw range of a tar member's data.
type Content struct {
	Hash      Hash
	RawOffset int64 // in the part's tar stream; a multiple of 512
	RawLen    int64 // > 0 (an empty file has no content)
}

// FileType is the type of an entry. The zero value is invalid.
type FileType uint8

// The seven file types of POSIX. A whiteout of overlayfs is a TypeChar with
// device number 0:0.
const (
	TypeFile FileType = iota + 1
	TypeDir
	TypeSymlink
	TypeFIFO
	TypeSocket
	TypeChar
	TypeBlock
)

var typeNames = [...]string{TypeFile: "file", TypeDir: "dir", TypeSymlink: "symlink",
	TypeFIFO: "fifo", TypeSocket: "socket", TypeChar: "char", TypeBlock: "block"}

// String returns the name of the type as the log spells it.
func (t FileType) String() string {
	if t.Valid() {
		return typeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// Valid reports whether t is one of the seven types.
func (t FileType) Valid() bool { return t >= TypeFile && t <= TypeBlock }

// MarshalText implements encoding.TextMarshaler.
func (t FileType) MarshalText() ([]byte, error) {
	if !t.Valid() {
		return nil, fmt.Errorf("no such file type: %d", uint8(t))
	}
	return []byte(typeNames[t]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *FileType) UnmarshalText(text []byte) error {
	for i, name := range typeNames {
		if name != "" && name == string(text) {
			*t = FileType(i)
			return nil
		}
	}
	return fmt.Errorf("no such file type: %q", text)
}

// Timespec is a point in time as the kernel gives it: seconds since 1970, which
// may be negative, and 0 to 999,999,999 nanoseconds after that second.
type Timespec struct {
	Sec  int64
	Nsec uint32
}

// Time returns t as a time.Time in UTC.
func (t Timespec) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// Device is a device number.
type Device struct {
	Major, Minor uint32
}

// Attr holds the attributes of a file of any type. Equal attributes of two
// scans mean that the file did not change between them.
type Attr struct {
	Type  FileType
	Mode  uint32   // permission bits, setuid, setgid and sticky: 07777
	UID   uint32   // owner
	GID   uint32   // group
	Size  int64    // raw bytes of a file or of a symlink's target; as at the source for the others
	Mtime Timespec // last change of the contents
	Ctime Timespec // last change of the inode, at the source
	Inode uint64   // number at the source; only compared, never shown
	Nlink uint32   // number of links at the source, ≥ 1; always 1 for a whiteout
	Rdev  Device   // of a TypeChar or TypeBlock
}

// Whiteout reports whether the attributes are those of an overlayfs whiteout:
// a character device 0:0.
func (a Attr) Whiteout() bool { return a.Type == TypeChar && a.Rdev == Device{} }

// Xattr is one extended attribute. Both are bytes, of any value.
type Xattr struct {
	Name  string // with its namespace: "user.comment"
	Value string
}

// Extent is a range of a file that holds data, and the content that it holds.
// What lies between extents is a hole.
type Extent struct {
	Offset int64 // in the file
	Len    int64 // > 0; the raw length of the content
	Hash   Hash
}

// Entry is one path of a generation.
type Entry struct {
	Path    string // components joined by "/", no leading or trailing "/"; "." is the root of the tree
	Attr    Attr
	Target  string   // of a symlink
	Xattrs  []Xattr  // ordered by name
	Data    []Extent // of a file; ordered by offset, not overlapping
	Group   string   // hard-link group: equal in all links of one inode; "" where Nlink is 1
	Changed bool     // the file changed while it was read: the data is one that was read, not one that ever was

	// In a checkpoint, else 0: what the index calls it.

	Number    uint64 // of the inode
	Directory uint64 // of a directory
}
