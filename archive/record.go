package archive

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A log record is a zstd stream of JSON lines:
//
//	header                        one line
//	part, content …               what the record adds to the parts
//	entry, more, gone, forget,
//	removed …                     what it changes
//	end                           counts of the lines above
//
// A checkpoint states everything that the records before it say and that is still
// of use, so that they can be deleted:
//
//	header
//	part, content …               all parts, and where every content lies
//	removed …                     parts whose files may still be there
//	given                         how many numbers the index has given
//	generation                    of each generation that was not forgotten, and
//	entry, more, gone …           how it differs from the one of its source before
//	end
//
// docs/FORMAT.md gives every field. A string that is not UTF-8 travels as base64
// in a field of the same name with "64" appended.

// Limits of a record. A reader refuses what exceeds them before it allocates.
const (
	maxLine        = 16 << 20 // raw bytes of one line
	maxHeader      = 64 << 10 // raw bytes of the first one
	extentsPerLine = 1000     // the others follow in "more" lines
	maxExtents     = 64 << 20 // of one entry
	maxName        = 255      // bytes of one component of a path
	maxPath        = MaxDirectoryPath + 1 + maxName
	maxContent     = 8 << 20  // raw bytes of one content
	maxInodeNumber = 1 << 62  // that the index gives
	maxXattrNames  = 64 << 10 // bytes of the names of an entry's xattrs, each with a NUL: XATTR_LIST_MAX of Linux
	maxXattrValue  = 64 << 10 // bytes of one value: XATTR_SIZE_MAX
)

// MaxDirectoryPath is how many bytes the path of a directory has at most that a writer stores.
// Each level of a path is held in memory with all above it, and anybody may make many. So the
// longest path that there is, and that a reader takes, is that of something in such a
// directory: 16,640 bytes.
const MaxDirectoryPath = 16 << 10

// MaxTarget is how many bytes the target of a symlink has at most: Linux hands out less than
// a page, which has no more.
const MaxTarget = 64 << 10

// maxRecord is the greatest number of a record: who counts up to it does not come round to 0.
const maxRecord = math.MaxInt64

// maxEntryLine is the most raw bytes that a writer gives the line of an entry in the record of
// a generation: 16,777,155. A checkpoint adds two numbers to it, of at most maxInodeNumber and
// math.MaxInt64. A reader takes maxLine.
const maxEntryLine = maxLine - len(`,"number":4611686018427387904,"directory":9223372036854775807`)

// Kind tells what a record does. The zero value is invalid.
type Kind string

// The kinds of records.
const (
	KindGeneration Kind = "generation"
	KindForget     Kind = "forget"
	KindCompaction Kind = "compaction"
	KindCheckpoint Kind = "checkpoint" // the records before it are not needed any more
)

// Header is the first line of a record.
type Header struct {
	Kind     Kind      `json:"kind"`
	Number   uint64    `json:"number"` // ≥ 1, one more than the record before
	Time     time.Time `json:"time"`
	Source   string    `json:"source"`         // of a generation; "" is the unnamed source
	Name     string    `json:"name,omitempty"` // of a generation
	Base     uint64    `json:"base"`           // number of the generation that a generation's changes are against; 0: it is complete
	Previous Digest    `json:"previous"`       // of record Number-1; zeros for record 1
	Program  string    `json:"program"`        // name and version of the writer
}

func (h Header) validate() error {
	switch h.Kind {
	case KindGeneration:
		if !ValidGenerationName(h.Name) {
			return fmt.Errorf("record %d: bad generation name %.300q", h.Number, h.Name)
		}
	case KindForget, KindCompaction, KindCheckpoint:
		if h.Source != "" || h.Name != "" || h.Base != 0 {
			return fmt.Errorf("record %d: a %s with source, name or base", h.Number, h.Kind)
		}
	default:
		return fmt.Errorf("record %d: unknown kind %.300q: written by a newer program?", h.Number, h.Kind)
	}
	if h.Number > maxRecord {
		return fmt.Errorf("record %d: want a number of at most %d", h.Number, int64(maxRecord))
	}
	if h.Number == 0 || h.Base >= h.Number {
		return fmt.Errorf("record %d: impossible base %d", h.Number, h.Base)
	}
	if !ValidSourceName(h.Source) {
		return fmt.Errorf("record %d: bad source name %.300q", h.Number, h.Source)
	}
	return nil
}

// ValidGenerationName reports whether name is one that mkbackup gives:
// "2026-11-22T03-00-00Z", and ".2", ".3", … behind it for further generations
// of the same second.
func ValidGenerationName(name string) bool {
	stamp, ordinal, more := strings.Cut(name, ".")
	t, err := time.Parse(GenerationTimeFormat, stamp)
	if err != nil || t.Format(GenerationTimeFormat) != stamp { // it takes "T3-" and fractions, too
		return false
	}
	if !more {
		return true
	}
	n, err := strconv.Atoi(ordinal)
	return err == nil && n >= 2 && strconv.Itoa(n) == ordinal
}

// GenerationTimeFormat is the layout of a generation's name, in UTC.
const GenerationTimeFormat = "2006-01-02T15-04-05Z"

// ValidSourceName reports whether name may be a source: "" (the unnamed one),
// or letters, digits and "._-" of ASCII, at most 255, beginning with a letter.
// So no source can be taken for a generation, "latest" apart, or a hidden file.
func ValidSourceName(name string) bool {
	if name == "" {
		return true
	}
	if len(name) > maxName || name == "latest" || !isLetter(name[0]) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !isLetter(c) && (c < '0' || c > '9') && !strings.ContainsRune("._-", rune(c)) {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// Placement says in which part a content lies.
type Placement struct {
	Part Digest
	Content
	Record uint64 // in a line of a checkpoint: the record that said so first; in other lines 0
}

// Given is how many numbers of directories and of inodes the index has given before
// a checkpoint: the next ones go on behind them.
type Given struct {
	Directories uint64
	Inodes      uint64
}

// Line is one line of a record's body. Exactly one field is set.
type Line struct {
	Part    *Part      // a new part
	Content *Placement // a content in a part that this or an earlier record names
	Entry   *Entry     // a path that is new or changed
	Gone    string     // a path that is no more, and all below it
	Forget  uint64     // the number of a generation that is dropped
	Removed *Digest    // a part that is no part of the repository any more; of a compaction or checkpoint

	// Only in a checkpoint:

	Given      *Given
	Generation *Header // of a generation: Kind, Number, Time, Source, Name and Base; the lines behind it are its changes
}

// Counts is the last line of a record: how many lines of each kind it has.
type Counts struct {
	Parts    int64 `json:"parts"`
	Contents int64 `json:"contents"`
	Entries  int64 `json:"entries"`
	Extents  int64 `json:"extents"`
	Gone     int64 `json:"gone"`
	Forgets  int64 `json:"forgets"`
	Removed  int64 `json:"removed,omitempty"`

	Generations int64 `json:"generations,omitempty"` // of a checkpoint
}

func (c *Counts) add(l Line) {
	switch {
	case l.Part != nil:
		c.Parts++
	case l.Content != nil:
		c.Contents++
	case l.Entry != nil:
		c.Entries++
		c.Extents += int64(len(l.Entry.Data))
	case l.Gone != "":
		c.Gone++
	case l.Forget != 0:
		c.Forgets++
	case l.Removed != nil:
		c.Removed++
	case l.Generation != nil:
		c.Generations++
	}
}

// allows says what is wrong with a line in a record of the kind, nil if nothing is.
func (k Kind) allows(l Line) error {
	checkpoint := k == KindCheckpoint
	switch {
	case (l.Part != nil || l.Content != nil) && k == KindForget:
		return errors.New("a part or a content in a record that is a forget")
	case (l.Entry != nil || l.Gone != "") && k != KindGeneration && !checkpoint:
		return fmt.Errorf("a path in a record that is a %s", k)
	case l.Forget != 0 && k != KindForget:
		return fmt.Errorf("a forgotten generation in a record that is a %s", k)
	case l.Removed != nil && k != KindCompaction && !checkpoint:
		return fmt.Errorf("a removed part in a record that is a %s", k)
	case (l.Given != nil || l.Generation != nil) && !checkpoint:
		return fmt.Errorf("a line of a checkpoint in a record that is a %s", k)
	case l.Content != nil && (l.Content.Record != 0) != checkpoint:
		return fmt.Errorf("content %s: with a record or without one, in a record that is a %s", l.Content.Hash, k)
	case l.Entry != nil && (l.Entry.Number != 0) != checkpoint:
		return fmt.Errorf("%.300q: with a number or without one, in a record that is a %s", l.Entry.Path, k)
	}
	return nil
}

// appendString appends ,"name":"value", or the base64 form where value is not UTF-8.
func appendString(b []byte, name, value string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	if !utf8.ValidString(value) {
		b = append(b, `64":"`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(value))
		return append(b, '"')
	}
	b = append(b, `":`...)
	return appendQuoted(b, value)
}

func appendQuoted(b []byte, value string) []byte {
	for i := range len(value) {
		if c := value[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			quoted, _ := json.Marshal(value) // of a valid string, which cannot fail
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, value...)
	return append(b, '"')
}

func appendInt(b []byte, name string, value int64) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, value, 10)
}

func appendPair(b []byte, name string, first int64, second uint32) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":[`...)
	b = strconv.AppendInt(b, first, 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, uint64(second), 10)
	return append(b, ']')
}

func appendDigest(b []byte, name string, digest [32]byte) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":"`...)
	b = Hash(digest).appendHex(b)
	return append(b, '"')
}

func (h Hash) appendHex(b []byte) []byte {
	const digits = "0123456789abcdef"
	for _, c := range h {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// finishLine turns the leading comma of the line that begins at start into its
// brace and closes it.
func finishLine(b []byte, start int) []byte {
	b[start] = '{'
	return append(b, '}', '\n')
}

func appendPart(b []byte, p Part) []byte {
	start := len(b)
	b = appendDigest(b, "part", p.Name)
	b = appendInt(b, "stored", p.Stored)
	b = appendInt(b, "raw", p.Raw)
	b = appendInt(b, "tail", p.TailStored)
	b = appendDigest(b, "tail_digest", p.Tail)
	return finishLine(b, start)
}

func appendContent(b []byte, c Placement) []byte {
	start := len(b)
	b = appendDigest(b, "content", c.Hash)
	b = appendDigest(b, "part", c.Part)
	b = appendInt(b, "offset", c.RawOffset)
	b = appendInt(b, "length", c.RawLen)
	if c.Record != 0 {
		b = appendInt(b, "record", int64(c.Record))
	}
	return finishLine(b, start)
}

func appendGiven(b []byte, g Given) []byte {
	start := len(b)
	b = appendInt(b, "directories", int64(g.Directories))
	b = appendInt(b, "inodes", int64(g.Inodes))
	return finishLine(b, start)
}

func appendGeneration(b []byte, h Header) []byte {
	start := len(b)
	b = appendInt(b, "generation", int64(h.Number))
	b = appendString(b, "time", h.Time.UTC().Format(time.RFC3339Nano))
	b = appendString(b, "source", h.Source)
	b = appendString(b, "name", h.Name)
	b = appendInt(b, "base", int64(h.Base))
	return finishLine(b, start)
}

func appendGone(b []byte, path string) []byte {
	start := len(b)
	return finishLine(appendString(b, "gone", path), start)
}

func appendForget(b []byte, number uint64) []byte {
	start := len(b)
	return finishLine(appendInt(b, "forget", int64(number)), start)
}

func appendRemoved(b []byte, part Digest) []byte {
	start := len(b)
	return finishLine(appendDigest(b, "removed", part), start)
}

func appendEntry(b []byte, e Entry) []byte {
	start := len(b)
	a := e.Attr
	b = appendString(b, "path", e.Path)
	b = append(b, `,"type":"`...)
	b = append(b, a.Type.String()...)
	b = append(b, `","mode":"`...)
	b = fmt.Appendf(b, "%04o", a.Mode)
	b = append(b, '"')
	b = appendInt(b, "uid", int64(a.UID))
	b = appendInt(b, "gid", int64(a.GID))
	b = appendInt(b, "size", a.Size)
	b = appendPair(b, "mtime", a.Mtime.Sec, a.Mtime.Nsec)
	b = appendPair(b, "ctime", a.Ctime.Sec, a.Ctime.Nsec)
	b = append(b, `,"inode":`...)
	b = strconv.AppendUint(b, a.Inode, 10)
	b = appendInt(b, "nlink", int64(a.Nlink))
	if a.Type == TypeChar || a.Type == TypeBlock {
		b = appendPair(b, "rdev", int64(a.Rdev.Major), a.Rdev.Minor)
	}
	if a.Type == TypeSymlink {
		b = appendString(b, "target", e.Target)
	}
	b = appendXattrs(b, e.Xattrs)
	b = appendExtents(b, "data", e.Data[:min(len(e.Data), extentsPerLine)])
	if e.Group != "" {
		b = appendString(b, "group", e.Group)
	}
	if e.Changed {
		b = append(b, `,"changed":true`...)
	}
	if e.Number != 0 {
		b = appendInt(b, "number", int64(e.Number))
	}
	if e.Directory != 0 {
		b = appendInt(b, "directory", int64(e.Directory))
	}
	b = finishLine(b, start)
	for rest := e.Data; len(rest) > extentsPerLine; {
		rest = rest[extentsPerLine:]
		start = len(b)
		b = appendExtents(b, "more", rest[:min(len(rest), extentsPerLine)])
		b = finishLine(b, start)
	}
	return b
}

func appendXattrs(b []byte, xattrs []Xattr) []byte {
	if len(xattrs) == 0 {
		return b
	}
	b = append(b, `,"xattrs":[`...)
	for i, x := range xattrs {
		if i > 0 {
			b = append(b, ',')
		}
		start := len(b)
		b = appendString(b, "name", x.Name)
		b = appendString(b, "value", x.Value)
		b[start] = '{'
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendExtents(b []byte, name string, extents []Extent) []byte {
	if len(extents) == 0 {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":[`...)
	for i, e := range extents {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = strconv.AppendInt(b, e.Offset, 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, e.Len, 10)
		b = append(b, ',', '"')
		b = e.Hash.appendHex(b)
		b = append(b, '"', ']')
	}
	return append(b, ']')
}

func (p *Part) validate() error {
	if p.TailStored <= 0 || p.Stored <= p.TailStored || p.Raw <= 0 {
		return fmt.Errorf("part %s: impossible sizes: stored %d, raw %d, tail %d", p.Name, p.Stored, p.Raw, p.TailStored)
	}
	return nil
}

// validate checks what a reader relies on; neither writer nor reader lets
// anything else pass.
func (e *Entry) validate() error {
	if err := validatePath(e.Path); err != nil {
		return err
	}
	if err := e.Attr.validate(); err != nil {
		return fmt.Errorf("%.300q: %w", e.Path, err)
	}
	if err := e.validateXattrs(); err != nil {
		return fmt.Errorf("%.300q: %w", e.Path, err)
	}
	if len(e.Data) > maxExtents {
		return fmt.Errorf("%.300q: more than %d extents", e.Path, maxExtents)
	}
	if (e.Target != "") != (e.Attr.Type == TypeSymlink) || strings.ContainsRune(e.Target, 0) {
		return fmt.Errorf("%.300q: a %s with the target %.300q", e.Path, e.Attr.Type, e.Target)
	}
	if len(e.Target) > MaxTarget {
		return fmt.Errorf("%.300q: its target has %d bytes, want at most %d", e.Path, len(e.Target), MaxTarget)
	}
	if len(e.Data) > 0 && e.Attr.Type != TypeFile {
		return fmt.Errorf("%.300q: a %s with data", e.Path, e.Attr.Type)
	}
	if e.Number > maxInodeNumber || e.Directory > math.MaxInt64 || (e.Directory != 0) != (e.Number != 0 && e.Attr.Type == TypeDir) {
		return fmt.Errorf("%.300q: a %s with the numbers %d and %d", e.Path, e.Attr.Type, e.Number, e.Directory)
	}
	if e.Group != "" && (e.Attr.Type == TypeDir || e.Attr.Whiteout()) {
		return fmt.Errorf("%.300q: a %s in a hard-link group", e.Path, e.Attr.Type)
	}
	if len(e.Group) > maxName {
		return fmt.Errorf("%.300q: the name of its hard-link group has %d bytes, want at most %d", e.Path, len(e.Group), maxName)
	}
	return e.validateExtents(0)
}

// validateExtents checks the extents from number first on, where those before are right.
func (e *Entry) validateExtents(first int) error {
	end := int64(0)
	if first > 0 {
		end = e.Data[first-1].Offset + e.Data[first-1].Len
	}
	for _, x := range e.Data[first:] {
		if x.Offset < end || x.Len <= 0 || x.Len > maxContent || x.Offset > e.Attr.Size-x.Len {
			return fmt.Errorf("%.300q: impossible extent: offset %d, length %d", e.Path, x.Offset, x.Len)
		}
		end = x.Offset + x.Len
	}
	return nil
}

func (a *Attr) validate() error {
	if !a.Type.Valid() || a.Mode > 0o7777 || a.Size < 0 || a.Nlink == 0 || a.Mtime.Nsec >= 1e9 || a.Ctime.Nsec >= 1e9 {
		return fmt.Errorf("impossible attributes: %+v", *a)
	}
	return nil
}

func (e *Entry) validateXattrs() error {
	previous, names := "", 0
	for _, x := range e.Xattrs {
		if x.Name <= previous || len(x.Name) > maxName || strings.ContainsRune(x.Name, 0) {
			return fmt.Errorf("bad extended attribute name %.300q", x.Name)
		}
		if len(x.Value) > maxXattrValue {
			return fmt.Errorf("extended attribute %q of %d bytes, want at most %d", x.Name, len(x.Value), maxXattrValue)
		}
		previous = x.Name
		names += len(x.Name) + 1
	}
	if names > maxXattrNames {
		return fmt.Errorf("%d extended attributes, whose names have %d bytes, want at most %d", len(e.Xattrs), names, maxXattrNames)
	}
	return nil
}

func validatePath(path string) error {
	if path == "." {
		return nil
	}
	if len(path) > maxPath {
		return fmt.Errorf("bad path %.300q…: it has %d bytes, want at most %d", path, len(path), maxPath)
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			return fmt.Errorf("bad path %.300q", path)
		}
	}
	return nil
}
