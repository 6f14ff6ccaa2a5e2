package index

import (
	"encoding/binary"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
	"github.com/backupfs/backupfs/internal/measure"
)

// The big tree has directories of 20 files, 100 of them in one, and 10,000
// contents in a part.
const (
	bigDir   = 20
	bigGroup = 100 * bigDir
	bigPart  = 10000
	bigFiles = 1000000
)

func bigPath(n int) string {
	return fmt.Sprintf("%04d/%06d/file-%02d.txt", n/bigGroup, n/bigDir, n%bigDir)
}

func bigHash(n, version int) archive.Hash {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	binary.LittleEndian.PutUint64(b[8:], uint64(version))
	return archive.HashOf(b[:])
}

func bigContent(n, version int) archive.Line {
	return archive.Line{Content: &archive.Placement{Part: bigPartOf(n, version).Part.Name, Content: archive.Content{
		Hash: bigHash(n, version), RawOffset: int64(n%bigPart) * 8192, RawLen: int64(1000 + n%5000)}}}
}

func bigPartOf(n, version int) archive.Line {
	p := &archive.Part{Stored: 20 << 20, Raw: bigPart * 8192, TailStored: 1000}
	binary.BigEndian.PutUint64(p.Name[:], uint64(n/bigPart)+1)
	p.Name[31] = byte(version)
	return archive.Line{Part: p}
}

func bigEntry(n, version int) archive.Line {
	a := fileAttr(int64(1000 + n%5000))
	a.Inode, a.Mtime.Nsec = uint64(n), uint32(version)
	return entryLine(bigPath(n), a, archive.Extent{Len: a.Size, Hash: bigHash(n, version)})
}

// bigRecord is a complete generation.
func bigRecord(files int) iter.Seq[archive.Line] {
	return func(yield func(archive.Line) bool) {
		for n := range files {
			if n%bigPart == 0 && !yield(bigPartOf(n, 0)) || !yield(bigContent(n, 0)) {
				return
			}
		}
		if !yield(entryLine(".", dirAttr())) {
			return
		}
		for n := range files {
			path := bigPath(n)
			if n%bigGroup == 0 && !yield(entryLine(path[:4], dirAttr())) ||
				n%bigDir == 0 && !yield(entryLine(path[:11], dirAttr())) ||
				!yield(bigEntry(n, 0)) {
				return
			}
		}
	}
}

// bigChange changes every step-th file.
func bigChange(files, step, version int) iter.Seq[archive.Line] {
	return func(yield func(archive.Line) bool) {
		for n := version; n < files; n += step {
			if !yield(bigPartOf(n, version)) || !yield(bigContent(n, version)) {
				return
			}
		}
		for n := version; n < files; n += step {
			if !yield(bigEntry(n, version)) {
				return
			}
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func stored(b *builder) (n int64) {
	for _, t := range b.tables {
		n += t.Stored
	}
	return n
}

// anonymous returns the anonymous memory of this process, in bytes.
func anonymous() int64 {
	m, _ := measure.MemoryOf(os.Getpid())
	return m.Anonymous
}

// watch returns a function that ends it and returns the most anonymous memory
// that the process had in between.
func watch() func() int64 {
	stop, most := make(chan bool), make(chan int64)
	go func() {
		peak := int64(0)
		for {
			select {
			case <-stop:
				most <- peak
				return
			case <-time.After(5 * time.Millisecond):
				peak = max(peak, anonymous())
			}
		}
	}()
	return func() int64 { close(stop); return <-most }
}

// BenchmarkMillion measures a first generation of 1,000,000 files, an advance of
// 1,000 changes, opening and reading.
func BenchmarkMillion(b *testing.B) {
	for b.Loop() {
		runtime.GC()
		cpu, start, peak := cpuTime(), time.Now(), watch()
		base := newTestBuilder(b)
		base.limit = minMemory
		r := newRecord(header(archive.KindGeneration, 1, 0), bigRecord(bigFiles))
		if err := base.apply(r); err != nil {
			b.Fatal(err)
		}
		if err := base.finish(true); err != nil {
			b.Fatal(err)
		}
		b.Logf("apply %d files: %v, CPU %v; %d tables of %d MB; %d MB of memory at most", bigFiles, time.Since(start), cpuTime()-cpu, len(base.tables), stored(base)>>20, peak()>>20)
		b.ReportMetric(time.Since(start).Seconds(), "apply-s")
		runtime.GC()
		last := advanceMany(b, base)
		readMany(b, last)
	}
}

// advanceMany advances 20 times, each time in a clone.
func advanceMany(b *testing.B, base *builder) *builder {
	if err := writeSeal(base, "test"); err != nil {
		b.Fatal(err)
	}
	for version := 1; version <= 20; version++ {
		start := time.Now()
		who, err := ownersOf(base.dir)
		if err != nil {
			b.Fatal(err)
		}
		s, err := verifySeal(base.dir, "test", base.number, who, newVerified(nil))
		if err != nil {
			b.Fatal(err)
		}
		verified := time.Since(start)
		dir := filepath.Join(b.TempDir(), fmt.Sprint(version))
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		if apart, err := linkTables(disk.OS{}, &sealed{seal: *s, dir: base.dir}, dir); err != nil || len(apart) > 0 {
			b.Fatal(apart, err)
		}
		next, err := newBuilder(disk.OS{}, dir, s.Tables, s.Record)
		if err != nil {
			b.Fatal(err)
		}
		h := header(archive.KindGeneration, next.number+1, next.number)
		if err := next.apply(newRecord(h, bigChange(bigFiles, bigFiles/1000, version))); err != nil {
			b.Fatal(err)
		}
		applied := time.Since(start)
		if err := next.finish(true); err != nil {
			b.Fatal(err)
		}
		if err := writeSeal(next, "test"); err != nil {
			b.Fatal(err)
		}
		b.Logf("advance %d: %v, of it verify %v, apply %v; %d tables of %d MB", version, time.Since(start), verified, applied-verified, len(next.tables), stored(next)>>20)
		base = next
	}
	return base
}

func readMany(b *testing.B, last *builder) {
	start := time.Now()
	db, err := newDB(last.dir, last.tables, last.number)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	b.Logf("open without the verification: %v; %d MB of memory", time.Since(start), anonymous()>>20)
	for _, g := range []uint64{1, last.number} {
		b.Logf("generation %d: %s", g, readCosts(b, db, db.At(g)))
	}
	b.Logf("%d MB of memory", anonymous()>>20)
}

// readCosts measures each kind of read at places all over the big tree.
func readCosts(b *testing.B, db *DB, v View) string {
	const reads = 5000
	var dirs []Dirent
	var inos []Ino
	for n := range reads {
		e, err := v.Resolve(1, bigPath(n * 197 % bigFiles)[:11])
		if err != nil {
			b.Fatal(err)
		}
		dirs = append(dirs, e)
	}
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	var costs []string
	measure := func(what string, read func(n int)) {
		start := time.Now()
		for n := range reads {
			read(n)
		}
		costs = append(costs, fmt.Sprintf("%s %v", what, (time.Since(start)/reads).Round(100*time.Nanosecond)))
	}
	measure("lookup", func(n int) {
		e, err := v.Lookup(dirs[n].Dir, "file-07.txt")
		check(err)
		inos = append(inos, e.Ino)
	})
	measure("dir", func(n int) { _, err := v.Dir(dirs[n].Dir); check(err) })
	measure("list of 20", func(n int) { check(v.List(dirs[n].Dir, "", func(Dirent) bool { return true })) })
	measure("inode", func(n int) { _, err := db.Inode(inos[n]); check(err) })
	measure("extents", func(n int) { _, err := extentsOf(db, inos[n], 0, 1<<20); check(err) })
	return strings.Join(costs, ", ")
}

// BenchmarkOpen opens a sealed index of 100,000 files.
func BenchmarkOpen(b *testing.B) {
	made := newTestBuilder(b)
	made.limit = minMemory
	if err := made.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(bigFiles/10))); err != nil {
		b.Fatal(err)
	}
	if err := made.finish(true); err != nil {
		b.Fatal(err)
	}
	if err := writeSeal(made, "test"); err != nil {
		b.Fatal(err)
	}
	who, err := ownersOf(made.dir)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(stored(made))
	for b.Loop() {
		if _, err := verifySeal(made.dir, "test", 1, who, newVerified(nil)); err != nil {
			b.Fatal(err)
		}
		db, err := newDB(made.dir, made.tables, 1)
		if err != nil {
			b.Fatal(err)
		}
		db.Close()
	}
}

// BenchmarkRead measures reads of an index of 100,000 files in one run.
func BenchmarkRead(b *testing.B) {
	made := newTestBuilder(b)
	made.limit = minMemory
	if err := made.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(bigFiles/10))); err != nil {
		b.Fatal(err)
	}
	if err := made.spill(); err != nil {
		b.Fatal(err)
	}
	made.close()
	if err := made.mergeRuns(1, true); err != nil {
		b.Fatal(err)
	}
	db := finished(b, made)
	v := db.At(1)
	dir, err := v.Resolve(1, "0010/001000")
	if err != nil {
		b.Fatal(err)
	}
	e, err := v.Lookup(dir.Dir, "file-07.txt")
	if err != nil {
		b.Fatal(err)
	}
	for name, read := range map[string]func() error{
		"Lookup":  func() error { _, err := v.Lookup(dir.Dir, "file-07.txt"); return err },
		"Absent":  func() error { v.Lookup(dir.Dir, "file-77.txt"); return nil },
		"Dir":     func() error { _, err := v.Dir(dir.Dir); return err },
		"List20":  func() error { return v.List(dir.Dir, "", func(Dirent) bool { return true }) },
		"Inode":   func() error { _, err := db.Inode(e.Ino); return err },
		"Extents": func() error { _, err := extentsOf(db, e.Ino, 0, 1<<20); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// touched adds to a change what a new file in 0000/000000 changes of the
// directories above it.
func touched(lines iter.Seq[archive.Line], version int) iter.Seq[archive.Line] {
	return func(yield func(archive.Line) bool) {
		seen := false
		for l := range lines {
			if l.Entry != nil && !seen {
				seen = true
				for _, path := range []string{".", "0000", "0000/000000"} {
					a := dirAttr()
					a.Mtime.Sec += int64(version)
					if !yield(entryLine(path, a)) {
						return
					}
				}
			}
			if !yield(l) {
				return
			}
		}
	}
}

// BenchmarkHistory measures, on 1,000,000 files and 300 generations of 1,000
// changed files each, the versions of one file and of one directory that changes
// each time, and a search over all of them.
func BenchmarkHistory(b *testing.B) {
	const generations = 300
	made := newTestBuilder(b)
	made.limit = 64 << 20
	for n := range generations {
		h := header(archive.KindGeneration, made.number+1, made.number)
		lines := bigRecord(bigFiles)
		if n > 0 {
			lines = touched(bigChange(bigFiles, bigFiles/1000, n), n)
		}
		r := newRecord(h, lines)
		if err := made.apply(r); err != nil {
			b.Fatal(err)
		}
		r.stop()
		if err := made.flush(); err != nil {
			b.Fatal(err)
		}
	}
	db := finished(b, made)
	gens, err := db.Generations()
	if err != nil {
		b.Fatal(err)
	}
	versions := func(b *testing.B, path string, want int) {
		v, err := db.Timeline(gens).Versions(path)
		if err != nil || len(v) < want {
			b.Fatal(path, v, err)
		}
	}
	spent := func(b *testing.B, before time.Duration) {
		b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
	}
	b.Run("File", func(b *testing.B) {
		defer spent(b, cpuTime())
		for n := 0; b.Loop(); n++ {
			versions(b, bigPath(n*7919%bigFiles), 1)
		}
	})
	b.Run("Directory", func(b *testing.B) {
		defer spent(b, cpuTime())
		for b.Loop() {
			versions(b, "0000/000000", generations)
		}
	})
	b.Run("Search", func(b *testing.B) {
		defer spent(b, cpuTime())
		for b.Loop() {
			found, err := db.Search(gens, func(_, name string) bool { return name == "file-07.txt" })
			if err != nil || len(found) != bigFiles/bigDir {
				b.Fatal(len(found), err)
			}
		}
	})
}
