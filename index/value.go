package index

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/cespare/xxhash/v2"
)

// The values. Numbers are unsigned varints (those that may be negative zigzag
// varints), strings and lists follow their length. The last 4 bytes of every
// value are the low half, big-endian, of the xxh64 of key, version (8 bytes,
// big-endian) and the bytes before, so that no value can be taken for another one.
//
//	node, dirent, generation   first a byte: gone, or what follows
//	part, number of a part     empty: the part was removed
//	attr                       type mode uid gid size mtime ctime inode nlink major minor
//	extents                    count, then of each: offset behind the end of the one before, length, hash
const sumSize = 4

// Kinds of the values that can be gone.
const (
	kindGone  = iota
	kindDir   // of a dirent: a directory; of a node or generation: it is there
	kindLeaf  // of a dirent: anything but a directory
	kindHoles // of a dirent on disk: a leaf that is a file with holes
)

// sealValue appends the checksum to a value.
func sealValue(key []byte, version uint64, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, valueSum(key, version, value))
}

func valueSum(key []byte, version uint64, value []byte) uint32 {
	var d xxhash.Digest
	var v [8]byte
	d.Reset()
	binary.BigEndian.PutUint64(v[:], version)
	d.Write(key)
	d.Write(v[:])
	d.Write(value)
	return uint32(d.Sum64())
}

// openValue verifies a value and returns it without its checksum.
func openValue(key []byte, version uint64, sealed []byte) ([]byte, error) {
	n := len(sealed) - sumSize
	if n < 0 || binary.BigEndian.Uint32(sealed[n:]) != valueSum(key, version, sealed[:n]) {
		return nil, fmt.Errorf("%w: checksum of key %q, version %d", ErrDamaged, string(key), version)
	}
	return sealed[:n], nil
}

// decoder reads a value from its start. After the first field that is not there
// it is bad, and every field is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// size reads a number that is neither negative nor beyond int64.
func (d *decoder) size() int64 {
	v := int64(d.uint())
	if v < 0 {
		d.fail()
		return 0
	}
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uint()
	if v > 1<<32-1 {
		d.fail()
		return 0
	}
	return uint32(v)
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) string() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	return string(d.bytes(int(n)))
}

func (d *decoder) digest() (v [32]byte) {
	copy(v[:], d.bytes(len(v)))
	return v
}

// end returns the error of a value that was not exactly what was read.
func (d *decoder) end(what string) error {
	if d.bad || len(d.b) > 0 {
		return fmt.Errorf("%w: malformed %s", ErrDamaged, what)
	}
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTime(b []byte, t archive.Timespec) []byte {
	return binary.AppendUvarint(binary.AppendVarint(b, t.Sec), uint64(t.Nsec))
}

func (d *decoder) time() archive.Timespec {
	return archive.Timespec{Sec: d.int(), Nsec: d.uint32()}
}

func timespec(t time.Time) archive.Timespec {
	return archive.Timespec{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}

func appendAttr(b []byte, a archive.Attr) []byte {
	b = append(b, byte(a.Type))
	b = binary.AppendUvarint(b, uint64(a.Mode))
	b = binary.AppendUvarint(b, uint64(a.UID))
	b = binary.AppendUvarint(b, uint64(a.GID))
	b = binary.AppendUvarint(b, uint64(a.Size))
	b = appendTime(b, a.Mtime)
	b = appendTime(b, a.Ctime)
	b = binary.AppendUvarint(b, a.Inode)
	b = binary.AppendUvarint(b, uint64(a.Nlink))
	b = binary.AppendUvarint(b, uint64(a.Rdev.Major))
	return binary.AppendUvarint(b, uint64(a.Rdev.Minor))
}

func (d *decoder) attr() archive.Attr {
	a := archive.Attr{Type: archive.FileType(d.byte()), Mode: d.uint32(), UID: d.uint32(), GID: d.uint32(),
		Size: d.size(), Mtime: d.time(), Ctime: d.time(), Inode: d.uint(), Nlink: d.uint32(),
		Rdev: archive.Device{Major: d.uint32(), Minor: d.uint32()}}
	if !a.Type.Valid() {
		d.fail()
	}
	return a
}

// dirent is the value of a dirent key. The zero value is gone.
type dirent struct {
	kind      byte  // gone, dir or leaf
	dir       DirID // of a directory
	ino       Ino   // of anything else, and
	attr      archive.Attr
	dataBytes int64 // of a file: raw bytes that are not holes; else 0
}

func appendDirent(b []byte, e dirent) []byte {
	switch {
	case e.kind == kindDir:
		return binary.AppendUvarint(append(b, kindDir), uint64(e.dir))
	case e.kind == kindLeaf && e.dataBytes == rawSize(e.attr):
		return appendAttr(binary.AppendUvarint(append(b, kindLeaf), uint64(e.ino)), e.attr)
	case e.kind == kindLeaf:
		b = appendAttr(binary.AppendUvarint(append(b, kindHoles), uint64(e.ino)), e.attr)
		return binary.AppendUvarint(b, uint64(e.dataBytes))
	}
	return append(b, kindGone)
}

func decodeDirent(value []byte) (dirent, error) {
	d := decoder{b: value}
	e := dirent{kind: d.byte()}
	switch e.kind {
	case kindGone:
	case kindDir:
		e.dir = DirID(d.uint())
	case kindLeaf:
		e.ino, e.attr = Ino(d.uint()), d.attr()
		e.dataBytes = rawSize(e.attr)
	case kindHoles:
		e.kind, e.ino, e.attr, e.dataBytes = kindLeaf, Ino(d.uint()), d.attr(), d.size()
		if e.dataBytes >= rawSize(e.attr) {
			d.fail()
		}
	default:
		d.fail()
	}
	return e, d.end("directory entry")
}

// direntIn decodes an entry of a directory. A directory in it has a greater number, since
// it is younger: so nothing that an index says makes a walk go round in circles.
func direntIn(dir DirID, value []byte) (dirent, error) {
	e, err := decodeDirent(value)
	if err == nil && e.kind == kindDir && e.dir <= dir {
		err = fmt.Errorf("%w: directory %d in directory %d", ErrDamaged, e.dir, dir)
	}
	return e, err
}

// appendNode appends the value of a directory that is there.
func appendNode(b []byte, n Node) []byte {
	b = binary.AppendUvarint(append(b, kindDir), uint64(n.Ino))
	b = binary.AppendUvarint(appendAttr(b, n.Attr), uint64(n.Children))
	return binary.AppendUvarint(b, uint64(n.Parent))
}

// decodeNode returns false where the directory is gone.
func decodeNode(value []byte) (Node, bool, error) {
	d := decoder{b: value}
	kind := d.byte()
	if kind == kindGone {
		return Node{}, false, d.end("directory")
	}
	n := Node{Ino: Ino(d.uint()), Attr: d.attr(), Children: int(d.uint32()), Parent: DirID(d.uint())}
	if kind != kindDir {
		d.fail()
	}
	return n, true, d.end("directory")
}

const (
	flagChanged   = 1 << iota // the file changed while it was read
	flagSegmented             // the extents are in segments
	flagGrouped               // it is in a hard-link group
)

// inode is the value of an inode key.
type inode struct {
	Inode
	segmented bool
	first     int64  // where segmented: the offset of the first segment
	extents   []byte // where not: encoded extents
}

func appendInode(b []byte, i Inode, data []archive.Extent) []byte {
	b = appendAttr(b, i.Attr)
	flags := byte(0)
	if i.Changed {
		flags |= flagChanged
	}
	if len(data) > inlineExtents {
		flags |= flagSegmented
	}
	if i.Group != "" {
		flags |= flagGrouped
	}
	b = binary.AppendUvarint(appendString(append(b, flags), i.Target), uint64(i.DataBytes))
	if i.Group != "" {
		b = appendString(b, i.Group)
	}
	if len(data) > inlineExtents {
		return binary.AppendUvarint(b, uint64(data[0].Offset))
	}
	return appendExtents(b, 0, data)
}

// inodeStart reads an inode's value up to its extents.
func (d *decoder) inodeStart() (i Inode, segmented bool) {
	i.Attr = d.attr()
	flags := d.byte()
	if flags >= flagGrouped<<1 {
		d.fail()
	}
	i.Changed, i.Target, i.DataBytes = flags&flagChanged != 0, d.string(), d.size()
	if flags&flagGrouped != 0 {
		if i.Group = d.string(); i.Group == "" {
			d.fail()
		}
	}
	return i, flags&flagSegmented != 0
}

// decodeInodeStart returns an inode without looking at its extents.
func decodeInodeStart(value []byte) (Inode, error) {
	d := decoder{b: value}
	i, _ := d.inodeStart()
	d.b = nil
	return i, d.end("inode")
}

func decodeInode(value []byte) (i inode, err error) {
	d := decoder{b: value}
	if i.Inode, i.segmented = d.inodeStart(); i.segmented {
		i.first = d.size()
	} else {
		i.extents, d.b = d.b, nil
	}
	return i, d.end("inode")
}

// whole returns the extent that a file consists of, if it is exactly one.
func (i *inode) whole() (archive.Extent, bool) {
	if i.segmented || i.Attr.Type != archive.TypeFile || i.Attr.Size == 0 || i.DataBytes != i.Attr.Size {
		return archive.Extent{}, false
	}
	d := decoder{b: i.extents}
	if d.uint() != 1 {
		return archive.Extent{}, false
	}
	e := archive.Extent{Offset: d.size(), Len: d.size(), Hash: d.digest()}
	return e, d.end("extents") == nil && e.Offset == 0 && e.Len == i.Attr.Size
}

// Extents of up to inlineExtents are in the inode; more are in segments of up
// to segmentExtents.
const (
	inlineExtents  = 32
	segmentExtents = 64
)

// appendExtents appends extents that begin at or behind base.
func appendExtents(b []byte, base int64, data []archive.Extent) []byte {
	b = binary.AppendUvarint(b, uint64(len(data)))
	for _, e := range data {
		b = binary.AppendUvarint(b, uint64(e.Offset-base))
		b = binary.AppendUvarint(b, uint64(e.Len))
		b = append(b, e.Hash[:]...)
		base = e.Offset + e.Len
	}
	return b
}

// decodeExtents yields extents until yield returns false. It reports whether
// all were yielded.
func decodeExtents(value []byte, base int64, yield func(archive.Extent) bool) (bool, error) {
	d := decoder{b: value}
	for n := d.uint(); n > 0 && !d.bad; n-- {
		e := archive.Extent{Offset: d.size() + base, Len: d.size(), Hash: d.digest()}
		base = e.Offset + e.Len
		if e.Offset < 0 || e.Len <= 0 || base < e.Offset {
			d.fail()
		}
		if d.bad {
			break
		}
		if !yield(e) {
			return false, nil
		}
	}
	return true, d.end("extents")
}

// appendSegment appends a segment's value. The offset of the next segment is 0
// in the last one.
func appendSegment(b []byte, next int64, data []archive.Extent) []byte {
	return appendExtents(binary.AppendUvarint(b, uint64(next)), data[0].Offset, data)
}

// decodeSegment returns the offset of the next segment and the encoded extents.
func decodeSegment(value []byte) (next int64, extents []byte, err error) {
	d := decoder{b: value}
	if next = d.size(); d.bad {
		return 0, nil, d.end("extents")
	}
	return next, d.b, nil
}

// place is the value of a content key.
type place struct {
	part      uint64
	rawOffset int64
	rawLen    int64
}

func appendPlace(b []byte, p place) []byte {
	b = binary.AppendUvarint(b, p.part)
	b = binary.AppendUvarint(b, uint64(p.rawOffset))
	return binary.AppendUvarint(b, uint64(p.rawLen))
}

func decodePlace(value []byte) (place, error) {
	d := decoder{b: value}
	p := place{part: d.uint(), rawOffset: d.size(), rawLen: d.size()}
	return p, d.end("content")
}

func appendPart(b []byte, p archive.Part) []byte {
	b = append(b, p.Name[:]...)
	b = binary.AppendUvarint(b, uint64(p.Stored))
	b = binary.AppendUvarint(b, uint64(p.Raw))
	b = binary.AppendUvarint(b, uint64(p.TailStored))
	return append(b, p.Tail[:]...)
}

func decodePart(value []byte) (archive.Part, error) {
	d := decoder{b: value}
	p := archive.Part{Name: d.digest(), Stored: d.size(), Raw: d.size(), TailStored: d.size(), Tail: d.digest()}
	return p, d.end("part")
}

func decodeNumber(value []byte) (uint64, error) {
	d := decoder{b: value}
	n := d.uint()
	return n, d.end("number")
}

// group is the value of a hard-link group's key.
type group struct {
	ino   Ino
	print [16]byte // of everything about the inode
}

func appendGroup(b []byte, g group) []byte {
	return append(binary.AppendUvarint(b, uint64(g.ino)), g.print[:]...)
}

func decodeGroup(value []byte) (group, error) {
	d := decoder{b: value}
	g := group{ino: Ino(d.uint())}
	copy(g.print[:], d.bytes(len(g.print)))
	return g, d.end("hard-link group")
}

// tree is what is known of a source's newest generation.
type tree struct {
	root             DirID
	files, dirs, raw int64
}

func appendTree(b []byte, t tree) []byte {
	b = binary.AppendUvarint(b, uint64(t.root))
	b = binary.AppendUvarint(b, uint64(t.files))
	b = binary.AppendUvarint(b, uint64(t.dirs))
	return binary.AppendUvarint(b, uint64(t.raw))
}

func (d *decoder) tree() tree {
	return tree{root: DirID(d.uint()), files: d.size(), dirs: d.size(), raw: d.size()}
}

// head is the value of a source's key.
type head struct {
	number uint64 // of the record of its newest generation
	tree
}

func appendHead(b []byte, h head) []byte {
	return appendTree(binary.AppendUvarint(b, h.number), h.tree)
}

func decodeHead(value []byte) (head, error) {
	d := decoder{b: value}
	h := head{number: d.uint(), tree: d.tree()}
	return h, d.end("source")
}

// appendGeneration appends the value of a generation, whose number is in its key.
func appendGeneration(b []byte, g Generation) []byte {
	b = appendString(appendString(append(b, kindDir), g.Source), g.Name)
	b = appendTime(b, timespec(g.Time))
	return appendTree(b, tree{root: g.Root, files: g.Files, dirs: g.Dirs, raw: g.Raw})
}

// appendForgotten appends the value of a generation that was forgotten at t.
func appendForgotten(b []byte, t time.Time) []byte {
	return appendTime(append(b, kindGone), timespec(t))
}

// generation is the value of a generation's key.
type generation struct {
	Generation
	gone      bool
	forgotten time.Time // where gone: the time of the record that said so
}

func decodeGeneration(number uint64, value []byte) (generation, error) {
	d := decoder{b: value}
	var g generation
	switch d.byte() {
	case kindGone:
		g.gone, g.forgotten = true, d.time().Time()
	case kindDir:
		g.Generation = Generation{Number: number, Source: d.string(), Name: d.string(), Time: d.time().Time()}
		t := d.tree()
		g.Root, g.Files, g.Dirs, g.Raw = t.root, t.files, t.dirs, t.raw
	default:
		d.fail()
	}
	return g, d.end("generation")
}

// meta holds the counters and totals after a record.
type meta struct {
	digest    archive.Digest // of the record
	time      time.Time      // of the record
	dirs      uint64         // directory ids given
	inos      uint64         // inode numbers given
	parts     uint64         // part numbers given
	raw       int64          // bytes of all parts that were not removed
	stored    int64
	removal   uint64 // the last record that removed a part
	begins    uint64 // the checkpoint that the log begins with; 0: it begins with record 1
	hasXattrs bool   // any inode has extended attributes
	hasLabels bool   // any of them is LabelXattr
}

func appendMeta(b []byte, m meta) []byte {
	b = appendTime(append(b, m.digest[:]...), timespec(m.time))
	for _, v := range [...]uint64{m.dirs, m.inos, m.parts, uint64(m.raw), uint64(m.stored), m.removal, m.begins} {
		b = binary.AppendUvarint(b, v)
	}
	switch {
	case m.hasLabels:
		return append(b, 2)
	case m.hasXattrs:
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeMeta(value []byte) (meta, error) {
	d := decoder{b: value}
	m := meta{digest: d.digest(), time: d.time().Time(), dirs: d.uint(), inos: d.uint(), parts: d.uint(),
		raw: d.size(), stored: d.size(), removal: d.uint(), begins: d.uint()}
	switch d.byte() {
	case 0:
	case 1:
		m.hasXattrs = true
	case 2:
		m.hasXattrs, m.hasLabels = true, true
	default:
		d.fail()
	}
	return m, d.end("meta")
}
