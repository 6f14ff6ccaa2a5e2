package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/watchdog"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/y"
	flatbuffers "github.com/google/flatbuffers/go"
)

// randomRuns writes runs of one to three tables each. A version of a key that was
// written before may be written again, in the newest run so far.
func randomRuns(t testing.TB, rnd *rand.Rand, runs int) *builder {
	t.Helper()
	b := newTestBuilder(t)
	version := uint64(1)
	for range runs {
		newest := map[string][]uint64{} // of this run
		for range 1 + rnd.IntN(3) {
			for range rnd.IntN(300) {
				key := string(randomKey(rnd))
				if v := newest[key]; len(v) == 0 || v[0] != version {
					newest[key] = append([]uint64{version}, v...)
				}
			}
			version += uint64(rnd.IntN(3))
		}
		var tables []tableFile
		keys := slices.Sorted(maps.Keys(newest))
		for part := range slices.Chunk(keys, 1+len(keys)/(1+rnd.IntN(3))) {
			out := newTableBuilder(1 << 20)
			for _, key := range part {
				for _, at := range newest[key] {
					value := bytes.Repeat([]byte{byte(rnd.Uint32())}, 1+rnd.IntN(20))
					if rnd.IntN(100) == 0 {
						value = bytes.Repeat(value, 1+rnd.IntN(10000)/len(value)) // more than a block
					}
					sealed := sealValue([]byte(key), at, value)
					out.Add(b.versionedKey([]byte(key), at), y.ValueStruct{Value: sealed}, 0)
				}
			}
			f, err := writeTable(b.fsys, b.dir, out, b.nextID)
			if err != nil {
				t.Fatal(err)
			}
			b.nextID++
			tables = append(tables, f)
		}
		b.addRun(tables...)
	}
	b.number = version
	return b
}

// randomKey returns one of some thousand keys, many of them beginnings of others.
func randomKey(rnd *rand.Rand) []byte {
	key := appendID(nil, "dix"[rnd.IntN(3)], uint64(rnd.IntN(8)))
	for range rnd.IntN(4) {
		key = append(key, "\x00ab\xff"[rnd.IntN(4)])
	}
	if rnd.IntN(50) == 0 {
		key = append(key, bytes.Repeat([]byte{'n'}, maxKey-len(key))...)
	}
	return key
}

// TestLikeBadger compares everything that is in random runs with what badger's own
// reader finds there.
func TestLikeBadger(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		b := randomRuns(t, rnd, []int{1, 2, 16, 31, 5, 9}[seed])
		if err := b.finish(false); err != nil {
			t.Fatal(err)
		}
		in, err := openTables(b.dir, b.tables)
		if err != nil {
			t.Fatal(err)
		}
		if seed%2 == 1 { // blocks of all tables share few slots
			for _, m := range slices.Concat(in.runs...) {
				m.firstSlot = 0
			}
		}
		db, err := badger.OpenManaged(badger.DefaultOptions(b.dir).WithReadOnly(true).WithLogger(nil).
			WithNumVersionsToKeep(math.MaxInt).WithMaxLevels(maxLevels).WithMetricsEnabled(false))
		if err != nil {
			t.Fatal(err)
		}
		compareGets(t, rnd, in, db, b.number)
		for range 60 {
			compareScans(t, rnd, in, db, uint64(rnd.IntN(int(b.number)+1)))
		}
		compareScans(t, rnd, in, db, math.MaxUint64)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		in.close()
	}
}

func compareGets(t *testing.T, rnd *rand.Rand, in *tables, db *badger.DB, newest uint64) {
	t.Helper()
	found := 0
	for range 5000 {
		key, ts := randomKey(rnd), uint64(rnd.IntN(int(newest)+2))
		got, err := get(in, ts, key)
		txn := db.NewTransactionAt(ts, false)
		item, wantErr := txn.Get(key)
		if (err == nil) != (wantErr == nil) || err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatalf("key %q at %d: %v, badger says %v", key, ts, err, wantErr)
		}
		if err == nil {
			found++
			want, err := item.ValueCopy(nil)
			if err != nil || !bytes.Equal(got, want[:len(want)-sumSize]) {
				t.Fatalf("key %q at %d: %x, badger says %x, %v", key, ts, got, want, err)
			}
		}
		txn.Discard()
	}
	if found < 10 {
		t.Fatalf("only %d keys were there", found)
	}
}

// compareScans runs over all or a part of the keys, in every way.
func compareScans(t *testing.T, rnd *rand.Rand, in *tables, db *badger.DB, ts uint64) {
	t.Helper()
	key := randomKey(rnd)
	prefix := key[:[]int{0, 1, idKey, len(key)}[rnd.IntN(4)]]
	for _, o := range []scanOptions{{}, {reverse: true}, {allVersions: true}} {
		var got, want []string
		c := newCursor(in, ts, prefix, o)
		for more := c.seek(key); more; more = c.next() {
			got = append(got, fmt.Sprintf("%q %d %x", c.key, c.at, c.sealed))
		}
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		txn := db.NewTransactionAt(ts, false)
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: o.reverse, AllVersions: o.allVersions})
		for it.Seek(key); it.Valid(); it.Next() {
			item := it.Item()
			value, err := item.ValueCopy(nil)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%q %d %x", item.Key(), item.Version(), value))
		}
		it.Close()
		txn.Discard()
		if !slices.Equal(got, want) {
			t.Fatalf("%+v from %q at %d, prefix %q: %d keys, badger has %d\n%.1000q\n%.1000q", o, key, ts, prefix, len(got), len(want), got, want)
		}
	}
}

// TestCutUnderUs cuts tables that are mapped: an error, and no crash.
func TestCutUnderUs(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(1000))); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	v := db.At(1)
	if _, err := v.Lookup(2, "000000"); err != nil {
		t.Fatal(err)
	}
	for _, f := range b.tables {
		if err := os.Truncate(filepath.Join(b.dir, f.name()), 0); err != nil {
			t.Fatal(err)
		}
	}
	for name, read := range map[string]func() error{
		"lookup": func() error { _, err := v.Lookup(2, "000000"); return err },
		"list":   func() error { _, _, err := v.list(2, "", func(Dirent) bool { return true }); return err },
		"inode":  func() error { _, err := db.Inode(260); return err },
		"scan":   func() error { _, err := db.Generations(); return err },
		"files":  func() error { return db.Files(256, 10, func(WholeFile) bool { return true }) },
	} {
		if err := read(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := openTables(b.dir, b.tables); !errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v", err)
	}
}

// TestMapping: tables are mapped private, which every file system can do, and yet count
// as pages of files, all of which Release gives back.
func TestMapping(t *testing.T) {
	b := newTestBuilder(t)
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(2000))); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	db.Release()
	if m := mappingsBelow(t, b.dir); !m.private || m.resident != 0 {
		t.Errorf("after a release: %+v", m)
	}
	if err := scan(db.tables, 1, nil, func(_, _ []byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if m := mappingsBelow(t, b.dir); m.resident == 0 || m.anonymous != 0 {
		t.Errorf("after all was read: %+v", m)
	}
	db.Release()
	if m := mappingsBelow(t, b.dir); m.resident != 0 {
		t.Errorf("after another release: %+v", m)
	}
}

// mappings is what the kernel says of memory, in KiB.
type mappings struct {
	private             bool // all of it
	resident, anonymous int
}

// mappingsBelow returns what is mapped of the files of a directory.
func mappingsBelow(t *testing.T, dir string) mappings {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	m, below := mappings{private: true}, false
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if !strings.HasSuffix(f[0], ":") {
			below = strings.HasPrefix(f[len(f)-1], dir+"/")
			m.private = m.private && (!below || f[1] == "r--p")
			continue
		}
		if n, err := strconv.Atoi(f[1]); err == nil && below {
			switch f[0] {
			case "Rss:":
				m.resident += n
			case "Anonymous:":
				m.anonymous += n
			}
		}
	}
	return m
}

// TestNoAllocations checks that reads take no memory where blocks are decoded.
func TestNoAllocations(t *testing.T) {
	b := newTestBuilder(t)
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(2000))); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 3; n++ {
		if err := b.flush(); err != nil {
			t.Fatal(err)
		}
		if err := applyLines(t, b, archive.KindGeneration, n, bigEntry(int(n), 0)); err != nil {
			t.Fatal(err)
		}
	}
	db := finished(t, b)
	db.Release() // and everything is still there
	v := db.At(2)
	e, err := v.Resolve(1, bigPath(7))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := v.Resolve(1, bigPath(7)[:11])
	if err != nil {
		t.Fatal(err)
	}
	scan := newCursor(db.tables, 2, nil, scanOptions{})
	if !scan.seek(nil) {
		t.Fatal(scan.err)
	}
	defer scan.close()
	files := 0
	for name, c := range map[string]struct {
		most float64
		read func() error
	}{
		"lookup":  {0, func() error { _, err := v.Lookup(dir.Dir, "file-07.txt"); return err }},
		"dir":     {0, func() error { _, err := v.Dir(dir.Dir); return err }},
		"inode":   {0, func() error { _, err := db.Inode(e.Ino); return err }},
		"content": {0, func() error { _, err := db.Content(bigHash(7, 0)); return err }},
		"step":    {0, func() error { scan.next(); return scan.err }},
		// A cursor at most, for 2,000 files.
		"files": {20, func() error { return db.Files(FirstIno, 10, func(WholeFile) bool { files++; return true }) }},
	} {
		got := testing.AllocsPerRun(50, func() {
			if err := c.read(); err != nil {
				t.Fatal(name, err)
			}
		})
		if got > c.most {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
	if files != 51*2003 {
		t.Errorf("%d files", files)
	}
}

// smallTable returns the bytes of a table of n entries.
func smallTable(n int) []byte {
	out := newTableBuilder(1 << 20)
	b := &builder{}
	for n := range uint64(n) {
		key := appendDirentKey(nil, DirID(n/20), fmt.Sprint("name", n))
		out.Add(b.versionedKey(key, 1+n%3), y.ValueStruct{Value: sealValue(key, 1+n%3, binary.BigEndian.AppendUint64(nil, n*n*n))}, 0)
	}
	return out.Finish()
}

// openTable returns the table that has the given bytes.
func openTable(data []byte) (*tables, error) {
	in, err := newTables()
	if err != nil {
		return nil, err
	}
	m, err := parseTable(data)
	if err == nil {
		in.add(m, true)
	}
	return in, err
}

// everything returns what a cursor finds.
func everything(in *tables, o scanOptions) (list []string, err error) {
	c := newCursor(in, math.MaxUint64, nil, o)
	for more := c.seek(nil); more; more = c.next() {
		list = append(list, fmt.Sprintf("%q %d %x", c.key, c.at, c.value))
	}
	return list, c.close()
}

// TestDamagedBlocks flips a bit of each byte of the blocks of a table, once it is
// open: all is found, or an error.
func TestDamagedBlocks(t *testing.T) {
	t.Parallel()
	table := smallTable(500)
	in, err := openTable(table)
	if err != nil {
		t.Fatal(err)
	}
	want, err := everything(in, scanOptions{})
	if err != nil || len(want) != 500 {
		t.Fatalf("%d entries, %v", len(want), err)
	}
	var last fb.BlockOffset
	m := in.runs[0][0]
	m.index.Offsets(&last, m.blocks-1)
	if m.blocks < 3 {
		t.Fatalf("%d blocks", m.blocks)
	}
	damaged := 0
	for i := range last.Offset() + last.Len() {
		table[i] ^= 1 << (i % 8)
		clear(m.cache.slots[:])
		got, err := everything(in, scanOptions{})
		switch {
		case errors.Is(err, ErrDamaged):
			damaged++
		case err != nil || !slices.Equal(got, want):
			t.Fatalf("byte %d: %d of %d entries, %v", i, len(got), len(want), err)
		}
		table[i] ^= 1 << (i % 8)
	}
	if bytes := int(last.Offset() + last.Len()); damaged < bytes*9/10 {
		t.Errorf("%d bytes, %d flips noticed", bytes, damaged)
	}
}

// TestDamagedIndexOfTable flips a bit of each byte of the index of a table, once it is
// open and its memory was released: nothing is said to be missing, it is an error.
func TestDamagedIndexOfTable(t *testing.T) {
	t.Parallel()
	table := smallTable(500)
	in, err := openTable(table)
	if err != nil {
		t.Fatal(err)
	}
	there := appendDirentKey(nil, DirID(3), "name60")
	absent := appendDirentKey(nil, DirID(3), "nothing")
	index := in.runs[0][0].indexData
	for i := range index {
		index[i] ^= 1 << (i % 8)
		in.cache.era.Add(1)
		if _, err := get(in, math.MaxUint64, there); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: a key that is there: %v", i, err)
		}
		if _, err := get(in, math.MaxUint64, absent); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: a key that is not there: %v", i, err)
		}
		if list, err := everything(in, scanOptions{}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: a list of %d keys, %v", i, len(list), err)
		}
		index[i] ^= 1 << (i % 8)
	}
	if _, err := get(in, math.MaxUint64, there); err != nil {
		t.Error(err)
	}
	if _, err := get(in, math.MaxUint64, absent); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// TestCountOfBlocks: a table that claims no blocks, or more than its index has room
// for, is refused: they would be read.
func TestCountOfBlocks(t *testing.T) {
	t.Parallel()
	data := smallTable(200)
	in, err := openTable(data)
	if err != nil {
		t.Fatal(err)
	}
	const offsets = 4 // the field of the table, as flatbuffers count
	vector := in.runs[0][0].index.Table()
	count := vector.Bytes[vector.Vector(flatbuffers.UOffsetT(vector.Offset(offsets)))-4:]
	if n := binary.LittleEndian.Uint32(count); int(n) != in.blocks {
		t.Fatalf("%d blocks at that place, not %d", n, in.blocks)
	}
	for _, n := range []uint32{0, 1 << 20, math.MaxUint32} {
		binary.LittleEndian.PutUint32(count, n)
		if _, err := openTable(data); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d blocks: %v", n, err)
		}
	}
}

// TestMergeOfDamaged merges a table whose last block is damaged: an error, and nothing
// of the table that was begun stays behind.
func TestMergeOfDamaged(t *testing.T) {
	b := newTestBuilder(t)
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(2000))); err != nil {
		t.Fatal(err)
	}
	if err := b.finish(false); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(b.dir, b.tables[0].name())
	table, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	in, err := openTable(table)
	if err != nil {
		t.Fatal(err)
	}
	var last fb.BlockOffset
	m := in.runs[0][0]
	m.index.Offsets(&last, m.blocks-1)
	table[last.Offset()+last.Len()/2] ^= 1
	if err := os.WriteFile(name, table, 0o600); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	if _, err := b.rewrite(b.tables, false); !errors.Is(err, ErrDamaged) {
		t.Errorf("merged: %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// TestTableOnFullDisk: a table that cannot be written is given up once.
func TestTableOnFullDisk(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	b.dir = filepath.Join(b.dir, "missing")
	run := &runWriter{b: b}
	key := appendNodeKey(nil, 1)
	if err := run.add(key, version{1, sealValue(key, 1, []byte("value"))}); err != nil {
		t.Fatal(err)
	}
	if err := run.finish(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("finish: %v", err)
	}
	run.discard()
}

// FuzzTable reads any bytes as a table, and as a block of one: no panic, an end, and
// no other errors.
func FuzzTable(f *testing.F) {
	table := smallTable(200)
	whole, err := openTable(table)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole.runs[0][0].block(0), uint16(5), byte(1))
	f.Add(table, uint16(0), byte(0))
	f.Add(table, uint16(len(table)-5), byte(1))
	f.Add([]byte{}, uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, flip byte) {
		defer watchdog.Start()()
		data = bytes.Clone(data)
		if int(at) < len(data) {
			data[at] ^= flip
		}
		in, err := openTable(data)
		if err == nil && in.blocks <= 16 { // where all are the same one, reading them takes long
			readTable(t, in, in.blocks*maxBlockRaw)
		} else if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		in, err = openTable(table)
		if err != nil {
			t.Fatal(err)
		}
		m := in.runs[0][0]
		in.cache.slots[0].Store(&decodedBlock{table: m, number: 0, data: data})
		readTable(t, in, len(data)+200)
	})
}

// readTable reads everything in a table, at most so many entries.
func readTable(t *testing.T, in *tables, most int) {
	t.Helper()
	for _, o := range []scanOptions{{}, {reverse: true}, {allVersions: true}} {
		c := newCursor(in, math.MaxUint64, nil, o)
		from := []byte(nil)
		if o.reverse {
			from = []byte{0xff}
		}
		steps := 0
		for more := c.seek(from); more; more = c.next() {
			if _, err := get(in, c.at, c.key); err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			if steps++; steps > most {
				t.Fatal("more entries than there is room for")
			}
		}
		if err := c.close(); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	}
}
