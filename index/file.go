package index

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/backupfs/backupfs/archive"
)

// PartReader reads raw bytes of parts; an *archive.Reader does. ReadAt fills b
// or fails.
type PartReader interface {
	ReadAt(p archive.Part, b []byte, rawOffset int64) error
}

// Inode returns everything about an inode but its extents and extended
// attributes. The error wraps ErrNotFound where there is none.
func (d *DB) Inode(i Ino) (Inode, error) {
	var buf [inlineValue]byte
	value, err := getTo(buf[:0], d.tables, d.number, appendInodeKey(make([]byte, 0, idKey), i))
	if err != nil {
		return Inode{}, err
	}
	return decodeInodeStart(value)
}

func (d *DB) inode(i Ino) (inode, error) {
	value, err := get(d.tables, d.number, appendInodeKey(make([]byte, 0, idKey), i))
	if err != nil {
		return inode{}, err
	}
	return decodeInode(value)
}

// Extents yields the extents that touch the n bytes of a file from off on, whole and in
// order, and where they lie now, until yield returns false. It does not collect them: a
// file may have as many as bytes.
func (d *DB) Extents(i Ino, off, n int64, yield func(Extent) bool) error {
	node, err := d.inode(i)
	if err != nil {
		return err
	}
	return d.extents(d, i, node, off, n, yield)
}

// extents is Extents with the places that another index knows.
func (d *DB) extents(places *DB, i Ino, node inode, off, n int64, yield func(Extent) bool) error {
	var placeErr error
	err := d.spans(i, node, off, func(e archive.Extent) bool {
		if e.Offset-off >= n {
			return false
		}
		var p Place
		if p, placeErr = places.contentOf(i, e); placeErr != nil {
			return false
		}
		return yield(Extent{Offset: e.Offset, Len: e.Len, Hash: e.Hash, Part: p.Part, RawOffset: p.RawOffset})
	})
	return cmp.Or(err, placeErr)
}

// spans yields the extents that end behind off, in order, until yield returns
// false.
func (d *DB) spans(i Ino, node inode, off int64, yield func(archive.Extent) bool) error {
	visit := func(e archive.Extent) bool { return e.Offset+e.Len <= off || yield(e) }
	if !node.segmented {
		_, err := decodeExtents(node.extents, 0, visit)
		return err
	}
	first, err := d.segmentOf(i, max(off, node.first))
	if err != nil {
		return err
	}
	for offset := first; ; {
		next, more, err := d.segment(i, offset, visit)
		if err != nil || !more || next == 0 {
			return err
		}
		if next <= offset {
			return fmt.Errorf("%w: extents of inode %d out of order", ErrDamaged, i)
		}
		offset = next
	}
}

// segmentOf returns the offset of the last segment that begins at off or before.
func (d *DB) segmentOf(i Ino, off int64) (int64, error) {
	key := appendSegmentKey(make([]byte, 0, idKey+8), i, off)
	c := newCursor(d.tables, d.number, key[:idKey], scanOptions{reverse: true})
	found := c.seek(key)
	if found {
		off = int64(keyID(c.key[8:]))
	}
	err := c.close()
	if err == nil && !found {
		err = missing(nil, "extents of inode %d", i)
	}
	return off, err
}

// segment yields the extents of one segment. more says whether all were yielded.
func (d *DB) segment(i Ino, offset int64, yield func(archive.Extent) bool) (next int64, more bool, err error) {
	key := appendSegmentKey(make([]byte, 0, idKey+8), i, offset)
	value, err := get(d.tables, d.number, key)
	if err != nil {
		return 0, false, missing(err, "extents of inode %d from %d on", i, offset)
	}
	next, extents, err := decodeSegment(value)
	if err == nil {
		more, err = decodeExtents(extents, offset, yield)
	}
	return next, more, err
}

// Files yields, in the order of their inode numbers, the files that are one whole
// content without holes, from the inode from on, itself included, and where they
// lie now. It ends when yield returns false, or behind gap inodes in a row that
// are nothing of the kind. Numbers are given in the order of paths, and contents
// lie in parts in the order in which they were read: so the next inodes are the
// neighbours of a small file in its frame.
func (d *DB) Files(from Ino, gap int, yield func(WholeFile) bool) error {
	c := newCursor(d.tables, d.number, []byte{spaceInode}, scanOptions{})
	err := d.files(c, from, gap, yield)
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}

func (d *DB) files(c *cursor, from Ino, gap int, yield func(WholeFile) bool) error {
	missed := 0
	for more := c.seek(appendInodeKey(make([]byte, 0, idKey), from)); more && missed < gap; more = c.next() {
		node, err := decodeInode(c.value)
		if err != nil {
			return err
		}
		missed++
		content, ok := node.whole()
		if !ok {
			continue
		}
		i := Ino(keyID(c.key))
		place, err := d.contentOf(i, content)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !yield(WholeFile{Ino: i, RawSize: content.Len, Part: place.Part, RawOffset: place.RawOffset}) {
			return nil
		}
		missed = 0
	}
	return nil
}

// contentOf returns where the content of an extent of an inode lies. The error
// wraps ErrNotFound where the index knows no place of it, as when its part was
// removed: then every generation that had the inode was forgotten.
func (d *DB) contentOf(i Ino, e archive.Extent) (Place, error) {
	p, err := d.Content(e.Hash)
	if errors.Is(err, ErrNotFound) {
		return p, fmt.Errorf("content %s of inode %d: %w", e.Hash, i, err)
	}
	if err != nil || p.RawLen != e.Len {
		err = missing(err, "content %s of inode %d, %d bytes", e.Hash, i, e.Len)
	}
	return p, err
}

// NextData returns the offset of the first byte at or behind off that lies in no
// hole. The error is io.EOF where there is none, or off is not in the file, and wraps
// ErrNotFound where there is no such inode.
func (d *DB) NextData(i Ino, off int64) (int64, error) {
	node, err := d.inode(i)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, io.EOF
	}
	found := int64(-1)
	err = d.spans(i, node, off, func(e archive.Extent) bool {
		found = max(e.Offset, off)
		return false
	})
	if err == nil && found < 0 {
		err = io.EOF
	}
	return found, err
}

// NextHole returns the offset of the first byte at or behind off that lies in a
// hole; the end of the file is one. The error is io.EOF where off is not in the file,
// and wraps ErrNotFound where there is no such inode.
func (d *DB) NextHole(i Ino, off int64) (int64, error) {
	node, err := d.inode(i)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= node.Attr.Size {
		return 0, io.EOF
	}
	if node.DataBytes == node.Attr.Size {
		return node.Attr.Size, nil
	}
	err = d.spans(i, node, off, func(e archive.Extent) bool {
		if e.Offset > off {
			return false
		}
		off = e.Offset + e.Len
		return true
	})
	return off, err
}

// Xattr returns the value of an extended attribute. The error wraps ErrNotFound
// where the inode has none of that name.
func (d *DB) Xattr(i Ino, name string) (string, error) {
	if !i.HasXattrs() || len(name) > maxName {
		return "", ErrNotFound
	}
	value, err := get(d.tables, d.number, appendXattrKey(make([]byte, 0, maxKey), i, name))
	return string(value), err
}

// Xattrs returns the extended attributes of an inode, ordered by name. The error wraps
// ErrNotFound where the inode has some, as its number says, and the index does not know it.
func (d *DB) Xattrs(i Ino) (list []archive.Xattr, err error) {
	if !i.HasXattrs() {
		return nil, nil
	}
	err = scan(d.tables, d.number, appendXattrKey(make([]byte, 0, idKey), i, ""), func(key, value []byte) error {
		list = append(list, archive.Xattr{Name: string(key[idKey:]), Value: string(value)})
		return nil
	})
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	return list, err
}

// Content returns where a content lies now. The error wraps ErrNotFound where
// the index does not know it, or the part that it lay in last was removed.
func (d *DB) Content(h archive.Hash) (Place, error) {
	var buf [inlineValue]byte
	value, err := getTo(buf[:0], d.tables, d.number, appendContentKey(make([]byte, 0, 1+len(h)), h))
	if err != nil {
		return Place{}, err
	}
	return d.place(value)
}

// place returns the place that a value says. The error is errPartGone where its part was removed.
func (d *DB) place(value []byte) (Place, error) {
	p, err := decodePlace(value)
	if err != nil {
		return Place{}, err
	}
	return d.inPart(p)
}

// inPart is place with a value that was decoded.
func (d *DB) inPart(p place) (Place, error) {
	part, err := d.part(p.part)
	return Place{Part: part, RawOffset: p.rawOffset, RawLen: p.rawLen}, err
}

// Elsewhere returns where a content lies besides the place that Content returns, which
// was named last, the newest first: two runs at the same time may store the same.
func (d *DB) Elsewhere(h archive.Hash) ([]Place, error) {
	var others []Place
	err := d.eachPlace(h[:], func(p contentPlace) error {
		if !p.again {
			return nil
		}
		other, err := d.inPart(p.place)
		others = append(others, other)
		return err
	})
	return others, err
}

// contentPlace is a place where a content lies.
type contentPlace struct {
	place
	hash   archive.Hash
	record uint64 // that says so
	again  bool   // another one was named after it, which counts
}

// eachPlace calls use with the places of each content whose hash begins as given, in the
// order of the hashes: with the one that was named last, and, unless the part of that was
// removed, with all others of the same length in parts that are there, the newest first.
func (d *DB) eachPlace(hash []byte, use func(contentPlace) error) error {
	c := newCursor(d.tables, d.number, append([]byte{spaceContent}, hash...), scanOptions{allVersions: true})
	var known []place // of one content
	var last archive.Hash
	var err error
	for more := c.seek(c.prefix); more && err == nil; more = c.next() {
		p := contentPlace{hash: archive.Hash(c.key[1:]), record: c.at}
		if p.place, err = decodePlace(c.value); err != nil {
			break
		}
		if p.again = len(known) > 0 && p.hash == last; !p.again {
			known, last = known[:0], p.hash
		}
		var counts bool
		if counts, err = d.counts(p.place, known); counts && err == nil {
			known = append(known, p.place)
			err = use(p)
		}
	}
	return cmp.Or(err, c.close())
}

// counts reports whether a place of a content is one to read it from; newer are those that
// were named after it.
func (d *DB) counts(p place, newer []place) (bool, error) {
	if len(newer) == 0 {
		return true, nil
	}
	if slices.Contains(newer, p) || newer[0].rawLen != p.rawLen {
		return false, nil
	}
	for _, part := range [...]uint64{newer[0].part, p.part} {
		if _, err := d.part(part); err != nil {
			if errors.Is(err, errPartGone) {
				err = nil
			}
			return false, err
		}
	}
	return true, nil
}

// errPartGone says that a compaction removed a part.
var errPartGone = fmt.Errorf("%w: its part was removed", ErrNotFound)

// maxParts bounds the parts in memory; each takes some 130 bytes.
const maxParts = 16 << 10

// part returns the part of a number, mostly from memory.
func (d *DB) part(number uint64) (archive.Part, error) {
	d.partsMu.RLock()
	p, ok := d.parts[number]
	d.partsMu.RUnlock()
	if ok {
		return p, nil
	}
	value, err := get(d.tables, d.number, appendID(make([]byte, 0, idKey), spacePart, number))
	if err != nil {
		return archive.Part{}, missing(err, "part number %d", number)
	}
	if len(value) == 0 {
		return archive.Part{}, errPartGone
	}
	if p, err = decodePart(value); err != nil {
		return archive.Part{}, err
	}
	d.partsMu.Lock()
	defer d.partsMu.Unlock()
	if len(d.parts) >= maxParts {
		clear(d.parts)
	}
	d.parts[number] = p
	return p, nil
}

// Parts yields every part that the log named and did not remove, oldest first,
// until yield returns false.
func (d *DB) Parts(yield func(archive.Part) bool) error {
	stop := errors.New("stop")
	err := scan(d.tables, d.number, []byte{spacePart}, func(_, value []byte) error {
		if len(value) == 0 {
			return nil
		}
		p, err := decodePart(value)
		if err == nil && !yield(p) {
			err = stop
		}
		return err
	})
	if errors.Is(err, stop) {
		return nil
	}
	return err
}

// ReadAt reads bytes of a file as io.ReaderAt does: less than len(b) only
// together with an error, io.EOF at the end of the file. Holes are zeros. What cannot be
// read where it lies is read elsewhere, where it lies twice: r knows of the failure.
func (d *DB) ReadAt(r PartReader, i Ino, b []byte, off int64) (int, error) {
	return d.ReadPlaced(r, d, i, b, off)
}

// ReadPlaced is ReadAt for an inode that only an older index may have: places is a
// newer index of the same log, which knows where the contents lie now. The error wraps
// ErrNotFound where places does not know a content, or its part was removed.
func (d *DB) ReadPlaced(r PartReader, places *DB, i Ino, b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read inode %d: negative offset", i)
	}
	node, err := d.inode(i)
	if err != nil {
		return 0, fmt.Errorf("read inode %d: %w", i, err)
	}
	size := node.Attr.Size
	if node.Attr.Type != archive.TypeFile {
		return 0, fmt.Errorf("read inode %d: it is a %s", i, node.Attr.Type)
	}
	if off >= size {
		return 0, io.EOF
	}
	eof := int64(len(b)) > size-off
	b = b[:min(int64(len(b)), size-off)]
	n, err := d.fill(r, places, i, node, b, off)
	if err != nil {
		return n, fmt.Errorf("read inode %d at %d: %w", i, off, err)
	}
	if eof {
		return n, io.EOF
	}
	return n, nil
}

// fill fills b with the bytes of a file from off on, and returns how many are
// good where it fails.
func (d *DB) fill(r PartReader, places *DB, i Ino, node inode, b []byte, off int64) (int, error) {
	n := 0 // filled so far
	var readErr error
	err := d.extents(places, i, node, off, int64(len(b)), func(e Extent) bool {
		skip := max(off-e.Offset, 0) // bytes of the extent before off
		start := int(e.Offset + skip - off)
		clear(b[n:start])
		n = start
		end := start + int(min(e.Len-skip, int64(len(b)-start)))
		readErr = r.ReadAt(e.Part, b[start:end], e.RawOffset+skip)
		if readErr != nil && !places.readElsewhere(r, e, b[start:end], skip) {
			return false
		}
		n, readErr = end, nil
		return true
	})
	if err = cmp.Or(readErr, err); err != nil {
		return n, err
	}
	clear(b[n:])
	return len(b), nil
}

// readElsewhere fills b with the bytes of an extent's content from skip on, if one of its
// other places can be read.
func (d *DB) readElsewhere(r PartReader, e Extent, b []byte, skip int64) bool {
	others, err := d.Elsewhere(e.Hash)
	return err == nil && slices.ContainsFunc(others, func(p Place) bool {
		return p.RawLen == e.Len && r.ReadAt(p.Part, b, p.RawOffset+skip) == nil
	})
}
