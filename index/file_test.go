package index

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/backupfs/backupfs/archive"
)

// fakeParts reads parts whose bytes are a function of part and offset.
type fakeParts struct{ fail bool }

func (f fakeParts) ReadAt(p archive.Part, b []byte, rawOffset int64) error {
	for i := range b {
		b[i] = rawByte(p.Name, rawOffset+int64(i))
	}
	if f.fail {
		return errors.New("damaged part")
	}
	return nil
}

func rawByte(part archive.Digest, rawOffset int64) byte {
	return byte(rawOffset*7+rawOffset>>8+int64(part[7])) | 1 // never zero
}

// sparseFile makes a file of count extents, some of them behind holes, and
// returns its bytes.
func sparseFile(rnd *rand.Rand, count int, tail int64) (lines []archive.Line, e *archive.Entry, content []byte) {
	part := &archive.Part{Stored: 1000, Raw: 1 << 30, TailStored: 10}
	part.Name[7] = 9
	lines = append(lines, archive.Line{Part: part})
	e = &archive.Entry{Path: "f", Attr: fileAttr(0)}
	for i := range count {
		if rnd.IntN(3) == 0 {
			content = append(content, make([]byte, 1+rnd.IntN(300))...)
		}
		x := archive.Extent{Offset: int64(len(content)), Len: int64(1 + rnd.IntN(100)), Hash: archive.HashOf(fmt.Append(nil, i))}
		place := archive.Placement{Part: part.Name, Content: archive.Content{Hash: x.Hash, RawOffset: int64(i) * 512, RawLen: x.Len}}
		for n := range x.Len {
			content = append(content, rawByte(part.Name, place.RawOffset+n))
		}
		lines = append(lines, archive.Line{Content: &place})
		e.Data = append(e.Data, x)
	}
	content = append(content, make([]byte, tail)...)
	e.Attr.Size = int64(len(content))
	return append(lines, entryLine(".", dirAttr()), archive.Line{Entry: e}), e, content
}

// TestReadAt reads files of no, few and many extents, with holes at the start, in
// the middle and at the end.
func TestReadAt(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, count := range []int{0, 1, inlineExtents, inlineExtents + 1, segmentExtents, segmentExtents + 1, 3 * segmentExtents, 3*segmentExtents + 1} {
		for _, tail := range []int64{0, 100} {
			lines, entry, content := sparseFile(rnd, count, tail)
			b := newTestBuilder(t)
			if err := applyLines(t, b, archive.KindGeneration, 0, lines...); err != nil {
				t.Fatal(err)
			}
			db := finished(t, b)
			e, err := db.At(1).Resolve(1, "f")
			if err != nil {
				t.Fatal(err)
			}
			checkReads(t, rnd, db, e.Ino, content)
			checkHoles(t, rnd, db, e.Ino, entry.Data, int64(len(content)))
			if count > 0 {
				buf := make([]byte, len(content))
				if n, err := db.ReadAt(fakeParts{fail: true}, e.Ino, buf, 0); err == nil || !bytes.Equal(buf[:n], content[:n]) {
					t.Errorf("damaged part: %d bytes, %v", n, err)
				}
			}
		}
	}
}

func checkReads(t *testing.T, rnd *rand.Rand, db *DB, ino Ino, content []byte) {
	t.Helper()
	want := bytes.NewReader(content)
	for range 60 {
		off, n := int64(rnd.IntN(len(content)+10)), rnd.IntN(len(content)+20)
		if rnd.IntN(10) > 0 {
			n = rnd.IntN(300)
		}
		got, expected := bytes.Repeat([]byte{'?'}, n), bytes.Repeat([]byte{'?'}, n)
		gotN, gotErr := db.ReadAt(fakeParts{}, ino, got, off)
		wantN, wantErr := want.ReadAt(expected, off)
		if gotN != wantN || !errors.Is(gotErr, wantErr) || !bytes.Equal(got, expected) {
			t.Fatalf("read %d bytes at %d of %d: %d, %v, want %d, %v", n, off, len(content), gotN, gotErr, wantN, wantErr)
		}
	}
	if _, err := db.ReadAt(fakeParts{}, ino, make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("negative offset: %v", err)
	}
}

func checkHoles(t *testing.T, rnd *rand.Rand, db *DB, ino Ino, data []archive.Extent, size int64) {
	t.Helper()
	isData := make([]bool, size)
	for _, e := range data {
		for off := e.Offset; off < e.Offset+e.Len; off++ {
			isData[off] = true
		}
	}
	for range 40 {
		off := int64(rnd.IntN(int(size) + 2))
		nextData, nextHole := off, off
		for nextData < size && !isData[nextData] {
			nextData++
		}
		for nextHole < size && isData[nextHole] {
			nextHole++
		}
		got, err := db.NextData(ino, off)
		if nextData >= size != errors.Is(err, io.EOF) || err == nil && got != nextData {
			t.Fatalf("next data behind %d: %d, %v, want %d of %d", off, got, err, nextData, size)
		}
		got, err = db.NextHole(ino, off)
		if off >= size != errors.Is(err, io.EOF) || err == nil && got != nextHole {
			t.Fatalf("next hole behind %d: %d, %v, want %d of %d", off, got, err, nextHole, size)
		}
	}
	_, dataErr := db.NextData(ino, -3)
	_, holeErr := db.NextHole(ino, -3)
	if !errors.Is(dataErr, io.EOF) || !errors.Is(holeErr, io.EOF) {
		t.Errorf("before the beginning: %v, %v", dataErr, holeErr)
	}
}

// TestUnknownInode: what the index does not know is no hole, and not without attributes.
func TestUnknownInode(t *testing.T) {
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0, entryLine(".", dirAttr())); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	const unknown = Ino(1<<40) | 1 // it says that it has attributes
	if !unknown.HasXattrs() {
		t.Fatal("wrong number")
	}
	_, dataErr := db.NextData(unknown, 0)
	_, holeErr := db.NextHole(unknown, 0)
	_, xattrErr := db.Xattrs(unknown)
	for _, err := range []error{dataErr, holeErr, xattrErr} {
		if !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
}

// TestExtents checks that extents are returned whole, and only those in the range.
func TestExtents(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	lines, entry, content := sparseFile(rnd, 1300, 5)
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0, lines...); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	e, err := db.At(1).Resolve(1, "f")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		off, n := int64(rnd.IntN(len(content)+10)), int64(rnd.IntN(2000))
		var want []int64
		for _, x := range entry.Data {
			if x.Offset < off+n && x.Offset+x.Len > off {
				want = append(want, x.Offset)
			}
		}
		list, err := extentsOf(db, e.Ino, off, n)
		var got []int64
		for _, x := range list {
			got = append(got, x.Offset)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%d+%d: %d, %v, want %d", off, n, got, err, want)
		}
	}
	if _, err := extentsOf(db, e.Ino+2, 0, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("extents of no inode: %v", err)
	}
}

// TestTinyExtents: a read holds no list of the extents that it touches, of which a log may
// give a file as many as bytes.
func TestTinyExtents(t *testing.T) {
	const count = 50_000
	db, ino := tinyExtents(t, count)
	var held [2]uint64 // by the last extent of a read; the first read fills caches
	for i := range held {
		reader := &lastRead{left: count, at: func() { held[i] = heap() }}
		b := make([]byte, count)
		if n, err := db.ReadAt(reader, ino, b, 0); n != count || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if before := heap(); held[i] > before+count*uint64(unsafe.Sizeof(Extent{}))/2 && i > 0 {
			t.Errorf("%d bytes are held at the last of %d extents, %d behind it", held[i], count, before)
		}
	}
}

// heap returns the bytes of what is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// lastRead is fakeParts that calls at in the last of so many reads.
type lastRead struct {
	fakeParts
	left int
	at   func()
}

func (r *lastRead) ReadAt(p archive.Part, b []byte, off int64) error {
	if r.left--; r.left == 0 {
		r.at()
	}
	return r.fakeParts.ReadAt(p, b, off)
}

// tinyExtents returns an index with a file of extents of one byte.
func tinyExtents(t testing.TB, count int) (*DB, Ino) {
	t.Helper()
	part := &archive.Part{Stored: 1000, Raw: 1 << 30, TailStored: 10}
	place := archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.HashOf([]byte("x")), RawOffset: 512, RawLen: 1}}
	file := &archive.Entry{Path: "f", Attr: fileAttr(int64(count))}
	for i := range count {
		file.Data = append(file.Data, archive.Extent{Offset: int64(i), Len: 1, Hash: place.Hash})
	}
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0, archive.Line{Part: part}, archive.Line{Content: &place}, entryLine(".", dirAttr()), archive.Line{Entry: file}); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	e, err := db.At(1).Resolve(1, "f")
	if err != nil {
		t.Fatal(err)
	}
	return db, e.Ino
}

// TestFiles looks for files of one whole content among others.
func TestFiles(t *testing.T) {
	t.Parallel()
	part := archive.Part{Stored: 1000, Raw: 1 << 20, TailStored: 10}
	part.Name[7] = 9
	hash := func(n byte) archive.Hash { return archive.Hash{n} }
	content := func(n byte, rawOffset, rawLen int64) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: hash(n), RawOffset: rawOffset, RawLen: rawLen}}}
	}
	extent := func(offset, length int64, n byte) archive.Extent {
		return archive.Extent{Offset: offset, Len: length, Hash: hash(n)}
	}
	link := fileAttr(3)
	link.Type = archive.TypeSymlink
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0,
		archive.Line{Part: &part}, content(1, 512, 10), content(2, 2048, 20),
		entryLine(".", dirAttr()),                                                 // 256
		entryLine("a", fileAttr(10), extent(0, 10, 1)),                            // 258
		entryLine("b", fileAttr(0)),                                               // 260: empty
		entryLine("c", fileAttr(30), extent(0, 10, 1), extent(10, 20, 2)),         // 262: two contents
		entryLine("d", fileAttr(20), extent(0, 20, 2)),                            // 264
		entryLine("e", fileAttr(11), extent(1, 10, 1)),                            // 266: begins with a hole
		entryLine("f", fileAttr(11), extent(0, 10, 1)),                            // 268: ends with a hole
		archive.Line{Entry: &archive.Entry{Path: "g", Attr: link, Target: "abc"}}, // 270
		archive.Line{Entry: &archive.Entry{Path: "h", Attr: fileAttr(10), Data: []archive.Extent{extent(0, 10, 1)},
			Xattrs: []archive.Xattr{{Name: "user.a", Value: "v"}}}}, // 273
	); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	a := WholeFile{Ino: 258, RawSize: 10, Part: part, RawOffset: 512}
	d := WholeFile{Ino: 264, RawSize: 20, Part: part, RawOffset: 2048}
	h := WholeFile{Ino: 273, RawSize: 10, Part: part, RawOffset: 512}
	for _, c := range []struct {
		from Ino
		gap  int
		most int // after which yield returns false
		want []WholeFile
	}{
		{256, 4, 9, []WholeFile{a, d, h}},
		{256, 3, 9, []WholeFile{a, d}},
		{256, 2, 9, []WholeFile{a}},
		{256, 1, 9, nil},
		{256, 0, 9, nil},
		{258, 1, 9, []WholeFile{a}},
		{258, 9, 2, []WholeFile{a, d}},
		{259, 9, 9, []WholeFile{d, h}},
		{273, 1, 9, []WholeFile{h}},
		{274, 9, 9, nil},
	} {
		var got []WholeFile
		err := db.Files(c.from, c.gap, func(f WholeFile) bool {
			got = append(got, f)
			return len(got) < c.most
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("from %d, gap %d: %+v, %v, want %+v", c.from, c.gap, got, err, c.want)
		}
	}
	if db.RecordDigest() != fakeDigest(1) {
		t.Errorf("digest of the record: %s", db.RecordDigest())
	}
}
