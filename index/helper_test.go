package index

import (
	"io"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
)

// fakeRecord is a record that was never written.
type fakeRecord struct {
	header archive.Header
	next   func() (archive.Line, bool)
	stop   func()
}

func newRecord(h archive.Header, lines iter.Seq[archive.Line]) *fakeRecord {
	r := &fakeRecord{header: h}
	r.next, r.stop = iter.Pull(lines)
	return r
}

func (r *fakeRecord) Header() archive.Header { return r.header }

func (r *fakeRecord) Next() (archive.Line, error) {
	if l, ok := r.next(); ok {
		return l, nil
	}
	return archive.Line{}, io.EOF
}

func (r *fakeRecord) Digest() (archive.Digest, error) { return fakeDigest(r.header.Number), nil }

func fakeDigest(number uint64) (d archive.Digest) {
	if number > 0 {
		d[0], d[1], d[2] = 1, byte(number), byte(number>>8)
	}
	return d
}

// header returns the header of a record of the unnamed source.
func header(kind archive.Kind, number, base uint64) archive.Header {
	at := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC).Add(time.Duration(number) * time.Hour)
	h := archive.Header{Kind: kind, Number: number, Base: base, Time: at, Previous: fakeDigest(number - 1)}
	if kind == archive.KindGeneration {
		h.Name = at.Format(archive.GenerationTimeFormat)
	}
	return h
}

// applyLines applies a record of the given lines as the next one.
func applyLines(t testing.TB, b *builder, kind archive.Kind, base uint64, lines ...archive.Line) error {
	t.Helper()
	r := newRecord(header(kind, b.number+1, base), slices.Values(lines))
	defer r.stop()
	return b.apply(r)
}

func fileAttr(size int64) archive.Attr {
	return archive.Attr{Type: archive.TypeFile, Mode: 0o644, UID: 1000, GID: 1000, Size: size, Nlink: 1,
		Mtime: archive.Timespec{Sec: 1700000000, Nsec: 123456789}, Ctime: archive.Timespec{Sec: 1700000001, Nsec: 987654321}, Inode: 4711}
}

func dirAttr() archive.Attr {
	a := fileAttr(4096)
	a.Type, a.Mode = archive.TypeDir, 0o755
	return a
}

func entryLine(path string, a archive.Attr, data ...archive.Extent) archive.Line {
	return archive.Line{Entry: &archive.Entry{Path: path, Attr: a, Data: data}}
}

// newTestBuilder returns a builder in a directory of its own, with little memory.
func newTestBuilder(t testing.TB) *builder {
	t.Helper()
	b, err := newBuilder(disk.OS{}, t.TempDir(), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.limit = minMemory / 16
	t.Cleanup(func() { b.close() })
	return b
}

// finished finishes a builder and opens it.
func finished(t testing.TB, b *builder) *DB {
	t.Helper()
	if err := b.finish(true); err != nil {
		t.Fatal(err)
	}
	db, err := newDB(b.dir, b.tables, b.number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// extentsOf returns what Extents yields.
func extentsOf(db *DB, i Ino, off, n int64) (list []Extent, err error) {
	err = db.Extents(i, off, n, func(e Extent) bool {
		list = append(list, e)
		return true
	})
	return list, err
}
