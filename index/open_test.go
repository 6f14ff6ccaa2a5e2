package index

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
	"golang.org/x/sys/unix"
)

func newRepository(t testing.TB) *archive.Repository {
	t.Helper()
	r, err := archive.Init(filepath.Join(t.TempDir(), "repo"), archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// reopened opens the repository once more, as another process would.
func reopened(t testing.TB, r *archive.Repository) *archive.Repository {
	t.Helper()
	other, err := archive.Open(r.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return other
}

// commit commits record number of a history.
func (h *history) commit(t testing.TB, r *archive.Repository, number uint64) {
	t.Helper()
	header, lines := h.headers[number-1], h.lines[number-1]
	header.Previous = archive.Digest{}
	if number > 1 {
		var err error
		if header.Previous, err = r.RecordDigest(number - 1); err != nil {
			t.Fatal(err)
		}
	}
	d, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	for _, l := range lines {
		if err := d.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := d.Commit(header); err != nil {
		t.Fatal(err)
	}
}

// messages collects what Options.Log is told.
type messages []string

func (m *messages) log(format string, args ...any) { *m = append(*m, fmt.Sprintf(format, args...)) }

func mustOpen(t testing.TB, r *archive.Repository, o Options) *DB {
	t.Helper()
	if o.Log == nil {
		o.Log = func(format string, args ...any) { t.Errorf("message: "+format, args...) }
	}
	db, err := Open(r, o)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func mustClose(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func sealedIndexes(t testing.TB, r *archive.Repository) []string {
	t.Helper()
	entries, err := os.ReadDir(r.IndexDir())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func noTemporaryFiles(t testing.TB, r *archive.Repository) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(r.Dir(), "tmp", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	db := mustOpen(t, r, Options{})
	if g, err := db.Generations(); db.Number() != 0 || len(g) != 0 || err != nil {
		t.Errorf("empty log: record %d, %v, %v", db.Number(), g, err)
	}
	if _, err := db.Inode(FirstIno); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty log: %v", err)
	}
	if _, err := db.At(1).Dir(1); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty log: %v", err)
	}
	mustClose(t, db)

	h := newHistory(4, 24)
	var opened []*DB
	for n := range h.headers {
		h.commit(t, r, uint64(n)+1)
		db := mustOpen(t, reopened(t, r), Options{})
		h.check(t, db)
		opened = append(opened, db)
		if n == 0 || n%5 == 4 {
			mustClose(t, mustOpen(t, r, Options{}))
		}
	}
	if got := sealedIndexes(t, r); !slices.Equal(got, []string{"000000000023", "000000000024"}) {
		t.Errorf("sealed indexes: %v", got)
	}
	for n := 3; n < len(opened); n += 5 { // whose files are gone
		h.check(t, opened[n])
	}
	want := dump(t, opened[23])
	for _, db := range opened {
		mustClose(t, db)
	}
	again := mustOpen(t, r, Options{})
	if dump(t, again) != want {
		t.Error("opened again: other answers")
	}
	mustClose(t, again)
	before, err := os.Stat(filepath.Join(r.IndexDir(), dirName(24)))
	if err != nil {
		t.Fatal(err)
	}
	rebuilt, err := Rebuild(r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if dump(t, rebuilt) != want {
		t.Error("rebuilt: other answers")
	}
	mustClose(t, rebuilt)
	if after, err := os.Stat(filepath.Join(r.IndexDir(), dirName(24))); err != nil || os.SameFile(before, after) {
		t.Errorf("not replaced: %v", err)
	}
	noTemporaryFiles(t, r)
}

// flip changes a byte in the middle of a file.
func flip(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10
	// Not in place: the tables are shared with the index before.
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, name string, keep int) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b[:min(keep, len(b))], 0o644); err != nil {
		t.Fatal(err)
	}
}

func rewriteSeal(t *testing.T, dir, old, new string) {
	t.Helper()
	name := filepath.Join(dir, sealName)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		t.Fatalf("no %q in %s", old, b)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(b), old, new, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tablesOf(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(list) < 2 {
		t.Fatalf("tables: %v, %v", list, err)
	}
	return list
}

// TestDamage does to the newest index what must never go unnoticed. The answers
// stay the same, the damage is said once, and is repaired.
func TestDamage(t *testing.T) {
	t.Parallel()
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	cases := map[string]func(t *testing.T, dir string){
		"table flipped":      func(t *testing.T, dir string) { flip(t, tablesOf(t, dir)[0]) },
		"table cut":          func(t *testing.T, dir string) { cut(t, tablesOf(t, dir)[0], 200) },
		"table empty":        func(t *testing.T, dir string) { cut(t, tablesOf(t, dir)[1], 0) },
		"table missing":      func(t *testing.T, dir string) { check(os.Remove(tablesOf(t, dir)[0])) },
		"MANIFEST flipped":   func(t *testing.T, dir string) { flip(t, filepath.Join(dir, manifestName)) },
		"MANIFEST cut":       func(t *testing.T, dir string) { cut(t, filepath.Join(dir, manifestName), 20) },
		"MANIFEST missing":   func(t *testing.T, dir string) { check(os.Remove(filepath.Join(dir, manifestName))) },
		"seal flipped":       func(t *testing.T, dir string) { flip(t, filepath.Join(dir, sealName)) },
		"seal cut":           func(t *testing.T, dir string) { cut(t, filepath.Join(dir, sealName), 100) },
		"seal empty":         func(t *testing.T, dir string) { cut(t, filepath.Join(dir, sealName), 0) },
		"seal missing":       func(t *testing.T, dir string) { check(os.Remove(filepath.Join(dir, sealName))) },
		"another schema":     func(t *testing.T, dir string) { rewriteSeal(t, dir, `"schema": 7`, `"schema": 8`) },
		"older schema":       func(t *testing.T, dir string) { rewriteSeal(t, dir, `"schema": 7`, `"schema": 6`) },
		"another record":     func(t *testing.T, dir string) { rewriteSeal(t, dir, `"record": 5`, `"record": 4`) },
		"another repository": func(t *testing.T, dir string) { rewriteSeal(t, dir, `"repository": "`, `"repository": "f`) },
		"unknown field":      func(t *testing.T, dir string) { rewriteSeal(t, dir, `"schema"`, `"next": 1, "schema"`) },
		"another level":      func(t *testing.T, dir string) { rewriteSeal(t, dir, `"level": `, `"level": 9`) },
		"stray file":         func(t *testing.T, dir string) { check(os.WriteFile(filepath.Join(dir, "x"), nil, 0o644)) },
		"group may write":    func(t *testing.T, dir string) { check(os.Chmod(dir, 0o775)) },
		"others may write":   func(t *testing.T, dir string) { check(os.Chmod(filepath.Join(dir, manifestName), 0o646)) },
		"empty directory":    func(t *testing.T, dir string) { check(os.RemoveAll(dir)); check(os.Mkdir(dir, 0o755)) },
		"file":               func(t *testing.T, dir string) { check(os.RemoveAll(dir)); check(os.WriteFile(dir, nil, 0o644)) },
		"symlink":            func(t *testing.T, dir string) { check(os.Rename(dir, dir+"x")); check(os.Symlink(dir+"x", dir)) },
		"another digest": func(t *testing.T, dir string) { // is no other record: the tables know better
			b, err := os.ReadFile(filepath.Join(dir, sealName))
			check(err)
			s, err := parseSeal(b)
			check(err)
			right := s.Digest.String()
			s.Digest[0]++
			rewriteSeal(t, dir, right, s.Digest.String())
		},
		"directory for table": func(t *testing.T, dir string) {
			n := tablesOf(t, dir)[0]
			check(os.Remove(n))
			check(os.Mkdir(n, 0o755))
		},
		"tables swapped": func(t *testing.T, dir string) {
			n := tablesOf(t, dir)
			check(os.Rename(n[0], dir+"/x"))
			check(os.Rename(n[1], n[0]))
			check(os.Rename(dir+"/x", n[1]))
		},
		"owned by a stranger": func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("giving a file away takes root")
			}
			check(os.Chown(filepath.Join(dir, sealName), 4711, -1))
		},
	}
	h := newHistory(5, 5)
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, only := range []bool{true, false} { // the only index, or one of two
				r := newRepository(t)
				for n := range h.headers {
					h.commit(t, r, uint64(n)+1)
					if n >= 3 || n == 0 {
						mustClose(t, mustOpen(t, r, Options{}))
					}
				}
				if only {
					check(os.RemoveAll(filepath.Join(r.IndexDir(), dirName(4))))
				}
				damage(t, filepath.Join(r.IndexDir(), dirName(5)))
				var said messages
				db := mustOpen(t, r, Options{Log: said.log})
				h.check(t, db)
				mustClose(t, db)
				if len(said) != 1 || !strings.HasPrefix(said[0], "index 5 is not used: ") {
					t.Errorf("messages: %q", said)
				}
				mustClose(t, mustOpen(t, r, Options{}))
				noTemporaryFiles(t, r)
			}
		})
	}
}

// TestBelievedDamage damages a table that was verified, as bad memory would: the
// checksums of the values tell. A generation may be missing then, but what is shown
// is right.
func TestBelievedDamage(t *testing.T) {
	t.Parallel()
	h := newHistory(6, 4)
	b := newTestBuilder(t)
	for range h.headers {
		h.apply(t, b)
	}
	if err := b.finish(true); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(b.dir, b.tables[0].name())
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	last, want := uint64(0), ""
	for i := -1; i < len(whole); i += max(1, len(whole)/300) {
		damaged := slices.Clone(whole)
		if i >= 0 {
			damaged[i] ^= 0x41
		}
		if err := os.WriteFile(name, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		generation, got, err := readEverything(b.dir, b.tables, uint64(len(h.headers)))
		switch {
		case i < 0 && err != nil:
			t.Fatal(err)
		case i < 0:
			last, want = generation, got
		case err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound):
			t.Errorf("byte %d: %v", i, err)
		case err == nil && generation == last && got != want:
			t.Errorf("byte %d: answers changed and nobody noticed", i)
		}
	}
}

// readEverything returns the last generation that is listed and its tree, or the
// first error.
func readEverything(dir string, files []tableFile, number uint64) (generation uint64, tree string, err error) {
	db, err := newDB(dir, files, number)
	if err != nil {
		return 0, "", err
	}
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		return 0, "", err
	}
	if len(gens) == 0 {
		return 0, "", ErrNotFound
	}
	var s strings.Builder
	g := gens[len(gens)-1]
	v := db.At(g.Number)
	queue := []DirID{g.Root}
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		var inner error
		err := v.List(dir, "", func(e Dirent) bool {
			fmt.Fprintln(&s, e)
			var x []Extent
			if x, inner = extentsOf(db, e.Ino, 0, 1<<60); inner == nil {
				fmt.Fprintln(&s, x)
			}
			if e.Dir != 0 {
				queue = append(queue, e.Dir)
			}
			return inner == nil
		})
		if err = errors.Join(err, inner); err != nil {
			return 0, "", err
		}
	}
	return g.Number, s.String(), nil
}

// TestForeignLog opens indexes of a log that was replaced by another one.
func TestForeignLog(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	h, other := newHistory(7, 6), newHistory(8, 8)
	for n := uint64(1); n <= 6; n++ {
		h.commit(t, r, n)
		mustClose(t, mustOpen(t, r, Options{}))
	}
	record := func(n uint64) string { return filepath.Join(r.Dir(), fmt.Sprintf("log/%012d.jsonl.zst", n)) }
	if err := os.Remove(record(6)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.IndexDir(), dirName(5))); err != nil {
		t.Fatal(err)
	}
	var said messages
	db := mustOpen(t, r, Options{Log: said.log})
	h.check(t, db)
	mustClose(t, db)
	if db.Number() != 5 || len(said) != 1 || !strings.Contains(said[0], "index 6 is not used: it goes beyond the log") {
		t.Errorf("shorter log: record %d, %q", db.Number(), said)
	}
	if got := sealedIndexes(t, r); !slices.Equal(got, []string{dirName(5), dirName(6)}) { // it may be all that is left of record 6
		t.Errorf("shorter log: indexes %v", got)
	}
	for n := uint64(1); n <= 5; n++ {
		if err := os.Remove(record(n)); err != nil {
			t.Fatal(err)
		}
	}
	for n := uint64(1); n <= 6; n++ {
		other.commit(t, r, n)
	}
	said = nil
	db = mustOpen(t, r, Options{Log: said.log})
	other.check(t, db)
	mustClose(t, db)
	if len(said) != 2 || !strings.Contains(said[0], "index 6 is not used: the log ends with another record") || !strings.Contains(said[1], "index 5 is not used: it is of another log") {
		t.Errorf("another log: %q", said)
	}
	if got := sealedIndexes(t, r); db.Kept() || !slices.Equal(got, []string{dirName(5), dirName(6)}) { // it may be all that is left of the other record
		t.Errorf("another log: kept %t, indexes %v", db.Kept(), got)
	}
	if _, err := Rebuild(r, Options{}); !errors.Is(err, ErrOtherEnd) {
		t.Errorf("another log, rebuilt: %v", err)
	}
	for n := uint64(7); n <= 8; n++ { // it goes on
		other.commit(t, r, n)
		db = mustOpen(t, r, Options{Log: said.log})
		other.check(t, db)
		mustClose(t, db)
		if got := sealedIndexes(t, r); !db.Kept() || !slices.Contains(got, dirName(6)) || !slices.Contains(got, dirName(n)) {
			t.Errorf("record %d of another log: kept %t, indexes %v", n, db.Kept(), got)
		}
	}
	db, err := Rebuild(r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	if got := sealedIndexes(t, r); !slices.Equal(got, []string{dirName(8)}) {
		t.Errorf("another log, rebuilt: indexes %v", got)
	}
}

// TestBeyondLog: only a sound index of the repository tells of records that the log does not
// have. What else has its name goes with the next index that is published, or if it may be
// such an index that was damaged, when all are built anew.
func TestBeyondLog(t *testing.T) {
	t.Parallel()
	seal := func(dir string) string { return filepath.Join(dir, sealName) }
	for name, c := range map[string]struct {
		spoil          func(t *testing.T, r *archive.Repository, dir string) // of index 6, which is beyond the log
		proves         bool
		stays, rebuilt bool // it stays when another one is published, or all are built anew
	}{
		"sound":   {spoil: func(*testing.T, *archive.Repository, string) {}, proves: true, stays: true, rebuilt: true},
		"damaged": {spoil: func(t *testing.T, _ *archive.Repository, dir string) { flip(t, tableOf(t, dir)) }, stays: true},
		"half":    {spoil: func(t *testing.T, _ *archive.Repository, dir string) { removeAll(t, tableOf(t, dir)) }, stays: true},
		"of another record 6": {spoil: func(t *testing.T, r *archive.Repository, dir string) {
			s, err := readSeal(seal(dir), owners{uint32(os.Geteuid())})
			if err != nil {
				t.Fatal(err)
			}
			rewriteSeal(t, dir, s.Digest.String(), archive.Digest{1}.String())
		}, stays: true},
		"of another program": {spoil: func(t *testing.T, _ *archive.Repository, dir string) {
			rewriteSeal(t, dir, fmt.Sprintf(`"schema": %d`, schema), fmt.Sprintf(`"schema": %d`, schema+1))
		}, stays: true, rebuilt: true},
		"without a seal": {spoil: func(t *testing.T, _ *archive.Repository, dir string) { removeAll(t, seal(dir)) }},
		"empty": {spoil: func(t *testing.T, _ *archive.Repository, dir string) {
			removeAll(t, dir)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		"a file": {spoil: func(t *testing.T, _ *archive.Repository, dir string) {
			removeAll(t, dir)
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		"of another repository": {spoil: func(t *testing.T, r *archive.Repository, dir string) {
			rewriteSeal(t, dir, r.ID, strings.Repeat("0", 32))
		}},
		"of record 7": {spoil: func(t *testing.T, _ *archive.Repository, dir string) {
			rewriteSeal(t, dir, `"record": 6`, `"record": 7`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, h := newRepository(t), newHistory(7, 6)
			for n := uint64(1); n <= 6; n++ {
				h.commit(t, r, n)
			}
			mustClose(t, mustOpen(t, r, Options{}))
			removeAll(t, filepath.Join(r.Dir(), archive.RecordStoreName(6)))
			c.spoil(t, r, filepath.Join(r.IndexDir(), dirName(6)))
			var found []error
			db := mustOpen(t, r, Options{Log: new(messages).log, Damaged: func(_ uint64, err error) { found = append(found, err) }})
			h.check(t, db)
			mustClose(t, db)
			if proves := len(found) == 1 && errors.Is(found[0], ErrBeyondLog); !db.Kept() || db.Number() != 5 || proves != c.proves {
				t.Errorf("kept %t, record %d, %v", db.Kept(), db.Number(), found)
			}
			if stays := slices.Contains(sealedIndexes(t, r), dirName(6)); stays != c.stays {
				t.Errorf("it stays: %t", stays)
			}
			if db, err := Rebuild(r, Options{}); err != nil {
				t.Fatal(err)
			} else {
				mustClose(t, db)
			}
			if stays := slices.Contains(sealedIndexes(t, r), dirName(6)); stays != c.rebuilt {
				t.Errorf("after all were built anew it stays: %t", stays)
			}
			h.commit(t, r, 6) // whatever is left is in nobody's way
			db = mustOpen(t, r, Options{Log: new(messages).log})
			h.check(t, db)
			mustClose(t, db)
			if !db.Kept() || db.Number() != 6 {
				t.Errorf("kept %t, record %d", db.Kept(), db.Number())
			}
			noTemporaryFiles(t, r)
		})
	}
}

// TestPublishedMeanwhile: an index that another process has put in the place of one that
// proves nothing, for a record that it has just committed, stays.
func TestPublishedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, rebuild := range []bool{false, true} {
		r, h := newRepository(t), newHistory(7, 6)
		for n := uint64(1); n <= 6; n++ {
			h.commit(t, r, n)
			if n >= 5 {
				mustClose(t, mustOpen(t, r, Options{}))
			}
		}
		p := &opener{Options: Options{Log: func(format string, a ...any) { t.Errorf(format, a...) }}, r: r,
			owners: owners{uint32(os.Geteuid())}, bad: map[uint64]bool{6: true}, verified: newVerified(nil), rebuild: rebuild}
		p.setOldAside(5, 0)
		if got := sealedIndexes(t, r); !slices.Contains(got, dirName(6)) {
			t.Errorf("rebuild %t: indexes %v", rebuild, got)
		}
	}
}

func removeAll(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// TestForeignDamagedLog: the index of another log does not stand in for a damaged one,
// where what can be read of the log says that it is another.
func TestForeignDamagedLog(t *testing.T) {
	t.Parallel()
	h, other := newHistory(7, 6), newHistory(8, 6)
	for _, indexes := range []uint64{4, 6} {
		r := newRepository(t)
		for n := uint64(1); n <= indexes; n++ {
			h.commit(t, r, n)
		}
		mustClose(t, mustOpen(t, r, Options{}))
		record := func(n uint64) string { return filepath.Join(r.Dir(), fmt.Sprintf("log/%012d.jsonl.zst", n)) }
		for n := uint64(1); n <= indexes; n++ {
			if err := os.Remove(record(n)); err != nil {
				t.Fatal(err)
			}
		}
		for n := uint64(1); n <= 6; n++ {
			other.commit(t, r, n)
		}
		flip(t, record(3))
		var said messages
		db := mustOpen(t, r, Options{Partial: true, Log: said.log})
		if db.Number() != 2 || db.Problem() == nil {
			t.Errorf("index of record %d: covers %d, problem %v, %q", indexes, db.Number(), db.Problem(), said)
		}
		other.check(t, db)
		mustClose(t, db)
	}
}

// TestDamagedLog opens a repository whose log is damaged: a sealed index goes on
// to be used as long as it can be compared with the log, and beyond that only
// where the caller asks for it.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	h := newHistory(9, 6)
	build := func(t *testing.T, indexes, damaged uint64) *archive.Repository {
		r := newRepository(t)
		for n := uint64(1); n <= 6; n++ {
			h.commit(t, r, n)
			if n == indexes {
				mustClose(t, mustOpen(t, r, Options{}))
			}
		}
		flip(t, filepath.Join(r.Dir(), fmt.Sprintf("log/%012d.jsonl.zst", damaged)))
		return r
	}
	for _, c := range []struct {
		name             string
		indexes, damaged uint64
		number           uint64 // covered without Partial, 0 if it fails
		partial          uint64 // covered with Partial, 0 if it fails
	}{
		{"before the index", 5, 3, 6, 6},
		{"behind the index", 3, 5, 0, 4},
		{"no index", 0, 4, 0, 3},
		{"no index, first record", 0, 1, 0, 0},
		{"last record", 6, 6, 0, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := build(t, c.indexes, c.damaged)
			before := fmt.Sprint(sealedIndexes(t, r))
			var said messages
			db, err := Open(r, Options{Log: said.log})
			if c.number == 0 {
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("record %d", c.damaged)) {
					t.Errorf("error %v", err)
				}
			} else if err != nil || db.Number() != c.number || db.Problem() != nil {
				t.Errorf("%v", err)
			}
			if db != nil {
				h.check(t, db)
				mustClose(t, db)
				return
			}
			db, err = Open(r, Options{Partial: true, Log: said.log})
			if c.partial == 0 {
				if err == nil {
					t.Error("opened")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if db.Number() != c.partial || db.Problem() == nil {
				t.Errorf("covers %d, problem %v", db.Number(), db.Problem())
			}
			if c.partial < 6 {
				h.check(t, db)
			}
			mustClose(t, db)
			if after := fmt.Sprint(sealedIndexes(t, r)); after != before {
				t.Errorf("published: %v, before: %v", after, before)
			}
			noTemporaryFiles(t, r)
		})
	}
}

// TestConcurrentPublishers has many processes open the index while the log grows.
func TestConcurrentPublishers(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	h := newHistory(10, 12)
	h.commit(t, r, 1)
	var wg sync.WaitGroup
	done := make(chan bool)
	for range 6 {
		other := reopened(t, r)
		wg.Go(func() {
			for last := false; !last; {
				select {
				case <-done:
					last = true
				default:
				}
				db, err := Open(other, Options{Log: func(format string, args ...any) { t.Errorf(format, args...) }})
				if err != nil {
					t.Error(err)
					return
				}
				h.check(t, db)
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := uint64(2); n <= 12; n++ {
		h.commit(t, r, n)
	}
	close(done)
	wg.Wait()
	if got := sealedIndexes(t, r); len(got) > 2 || got[len(got)-1] != "000000000012" {
		t.Errorf("sealed indexes: %v", got)
	}
	noTemporaryFiles(t, r)
}

// mount mounts a small file system, or a directory read-only, for a test.
func mount(t *testing.T, source, dir, kind string, flags uintptr, data string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if err := unix.Mount(source, dir, kind, flags, data); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

func TestReadOnlyRepository(t *testing.T) {
	r := newRepository(t)
	h := newHistory(11, 3)
	h.commit(t, r, 1)
	mustClose(t, mustOpen(t, r, Options{}))
	h.commit(t, r, 2)
	h.commit(t, r, 3)
	r.Close()
	mount(t, r.Dir(), r.Dir(), "", unix.MS_BIND, "")
	if err := unix.Mount("", r.Dir(), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	var said messages
	db := mustOpen(t, reopened(t, r), Options{Log: said.log})
	h.check(t, db)
	if len(said) != 1 || !strings.Contains(said[0], "cannot be kept in the repository") {
		t.Errorf("messages: %q", said)
	}
	// A process that is killed leaves nothing behind.
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("files of an open temporary index: %v, %v", left, err)
	}
	mustClose(t, db)
}

// keepingFS removes as an NFS client or libfuse does: a file that is mapped stays under
// another name, and so its directory does.
type keepingFS struct{ disk.OS }

func (k keepingFS) RemoveAll(name string) error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	kept := false
	err = filepath.WalkDir(name, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || e != nil && e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		if !strings.Contains(string(maps), path) {
			return os.Remove(path)
		}
		kept = true
		return os.Rename(path, filepath.Join(filepath.Dir(path), ".nfs"+rand.Text()))
	})
	if kept {
		return &fs.PathError{Op: "unlinkat", Path: name, Err: unix.ENOTEMPTY}
	}
	return errors.Join(err, os.RemoveAll(name))
}

// checkpointOf returns a reader of the checkpoint that would follow what db covers.
func checkpointOf(t *testing.T, r *archive.Repository, db *DB) *archive.RecordReader {
	t.Helper()
	d, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Discard)
	if err := db.Checkpoint(d.Add); err != nil {
		t.Fatal(err)
	}
	h := header(archive.KindCheckpoint, db.Number()+1, 0)
	h.Previous = db.RecordDigest()
	record, err := d.Read(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { record.Close() })
	return record
}

// TestMappedFilesStay: where the files of an index that is open keep their directory from
// being removed, nothing fails because of it, and all goes when nobody has it open.
func TestMappedFilesStay(t *testing.T) {
	t.Parallel()
	r, err := archive.InitOn(keepingFS{}, filepath.Join(t.TempDir(), "repo"), archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(11, 15)
	for n := range uint64(11) {
		h.commit(t, r, n+1)
	}
	published := mustOpen(t, r, Options{})
	if err := published.VerifyCheckpoint(t.Context(), r, checkpointOf(t, r, published)); err != nil {
		t.Errorf("a checkpoint: %v", err)
	}
	var said messages
	rebuilt, err := Rebuild(r, Options{Temporary: true, Log: said.log})
	if err != nil {
		t.Fatalf("a temporary index: %v", err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "tmp/w-") || !strings.Contains(said[0], "can be removed yet") {
		t.Errorf("messages: %q", said)
	}
	opened := []*DB{published, rebuilt}
	for n := uint64(12); n <= 15; n++ { // each sets an index aside that is open
		h.commit(t, r, n)
		opened = append(opened, mustOpen(t, r, Options{Log: said.log}))
	}
	shrunk, err := Shrink(r, Options{Log: said.log}) // replaces one
	if err != nil {
		t.Fatalf("in the place of an open index: %v", err)
	}
	for _, db := range append(opened, shrunk) {
		h.check(t, db)
		mustClose(t, db)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(r.Dir(), "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestTooManyOpenFiles: an index that cannot be looked at for want of descriptors is
// neither damaged nor built anew. The error says what is wanting.
func TestTooManyOpenFiles(t *testing.T) {
	r := newRepository(t)
	h := newHistory(13, 3)
	for n := range uint64(3) {
		h.commit(t, r, n+1)
		mustClose(t, mustOpen(t, r, Options{}))
	}
	before, err := os.Stat(filepath.Join(r.IndexDir(), dirName(3)))
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	open := func(descriptors uint64) (*DB, error) {
		few := unix.Rlimit{Cur: descriptors, Max: limit.Max}
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &few, nil); err != nil {
			t.Fatal(err)
		}
		defer unix.Prlimit(0, unix.RLIMIT_NOFILE, &limit, nil)
		return Open(r, Options{Log: t.Errorf})
	}
	failed := 0
	db, err := open(0)
	for ; err != nil; db, err = open(uint64(failed)) {
		if failed++; failed > 1000 || !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrDamaged) {
			t.Fatalf("with %d descriptors: %v", failed-1, err)
		}
	}
	h.check(t, db)
	mustClose(t, db)
	after, err := os.Stat(filepath.Join(r.IndexDir(), dirName(3)))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("it was built anew: %v", err)
	}
}

// TestUnmappable: that a file system cannot map a table says nothing about the index.
func TestUnmappable(t *testing.T) {
	t.Parallel()
	const device = "/sys/kernel/mm/transparent_hugepage/enabled" // a regular file that nobody can map
	if _, err := os.Stat(device); err != nil {
		t.Fatal(err)
	}
	r := newRepository(t)
	newHistory(13, 1).commit(t, r, 1)
	mustClose(t, mustOpen(t, r, Options{}))
	dir := filepath.Join(r.IndexDir(), dirName(1))
	p := &opener{Options: Options{Log: t.Errorf}, r: r, bad: map[uint64]bool{}, verified: newVerified(nil)}
	var err error
	if p.owners, err = ownersOf(r.Dir()); err != nil {
		t.Fatal(err)
	}
	s, err := p.verify(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	name := tableOf(t, dir)
	if err := errors.Join(os.Remove(name), os.Symlink(device, name)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.openSealed(dir, s.Tables, 1); !errors.Is(err, unix.ENODEV) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
		t.Errorf("error %v", err)
	}
	if p.bad[1] {
		t.Error("the index is rejected")
	}
}

// TestInterrupted interrupts Open: nothing is left, what was published stays, and an
// interruption is not taken for damage, with which Open would go on.
func TestInterrupted(t *testing.T) {
	r := newRepository(t)
	h := newHistory(12, 2)
	stop := errors.New("interrupted")
	interrupted := func(name string, open func(*archive.Repository, Options) (*DB, error)) {
		asked := 0
		once := func() error {
			if asked++; asked == 1 {
				return stop
			}
			return nil
		}
		if db, err := open(r, Options{Partial: true, Log: t.Errorf, Interrupted: once}); !errors.Is(err, stop) || asked != 1 {
			t.Errorf("%s: asked %d times, %v, %v", name, asked, db, err)
		}
		noTemporaryFiles(t, r)
	}
	h.commit(t, r, 1)
	mustClose(t, mustOpen(t, r, Options{}))
	interrupted("from the log alone", Rebuild)
	h.commit(t, r, 2)
	interrupted("from an index", Open)
	db := mustOpen(t, r, Options{})
	h.check(t, db)
	h.checkpoint(stated(t, db))
	mustClose(t, db)
	h.commit(t, r, 3)
	interrupted("from a checkpoint", Rebuild)
	if got := sealedIndexes(t, r); !slices.Equal(got, []string{dirName(1), dirName(2)}) {
		t.Errorf("indexes %v", got)
	}
}

func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 40 MB")
	}
	dir, temp := t.TempDir(), t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=20m")
	mount(t, "tmpfs", temp, "tmpfs", 0, "size=20m")
	t.Setenv("TMPDIR", temp)
	r, err := archive.Init(filepath.Join(dir, "repo"), archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := newHistory(12, 1)
	h.commit(t, r, 1)
	if _, err := Open(r, Options{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "more are needed") {
		t.Errorf("little space: %v", err)
	}
	if err := unix.Mount("", temp, "", unix.MS_REMOUNT, "size=80m"); err != nil {
		t.Fatal(err)
	}
	var said messages
	db := mustOpen(t, r, Options{Log: said.log})
	h.check(t, db)
	if len(said) != 1 {
		t.Errorf("messages: %q", said)
	}
	mustClose(t, db)
	// A disk that fills up under way is an error, not the end of the process.
	b, err := newBuilder(disk.OS{}, filepath.Join(temp), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	if err := unix.Mount("", temp, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(30000))); !errors.Is(err, syscall.ENOSPC) {
		if err = b.finish(true); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("full: %v", err)
		}
	}
}

// unlinkedFS is a file system without hard links.
type unlinkedFS struct{ disk.OS }

func (unlinkedFS) Link(string, string) error { return unix.EPERM }

// TestRoomForCopies: where tables cannot be linked, the room for their copies is looked
// for before the first one is made.
func TestRoomForCopies(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=200m")
	mount(t, "tmpfs", temp, "tmpfs", 0, "size=1m")
	t.Setenv("TMPDIR", temp)
	r, err := archive.InitOn(unlinkedFS{}, filepath.Join(dir, "repo"), archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := header(archive.KindGeneration, 1, 0)
	h := &history{headers: []archive.Header{first, header(archive.KindGeneration, 2, 1)},
		lines: [][]archive.Line{slices.Collect(bigRecord(30000)), {bigEntry(1, 0)}}}
	h.commit(t, r, 1)
	mustClose(t, mustOpen(t, r, Options{}))
	h.commit(t, r, 2)
	info, err := os.Stat(tableOf(t, filepath.Join(r.IndexDir(), dirName(1))))
	if err != nil {
		t.Fatal(err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		t.Fatal(err)
	}
	used := int64(disk.Blocks-disk.Bfree) * disk.Bsize
	resize := func(size int64) {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
			t.Fatal(err)
		}
	}
	resize(used + spaceMargin + info.Size()/2)
	var said messages
	if _, err := Open(r, Options{Log: said.log}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("room for half a copy of %d bytes: %v", info.Size(), err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "bytes more are needed") {
		t.Errorf("messages: %q", said)
	}
	resize(used + spaceMargin + 2*info.Size())
	db := mustOpen(t, r, Options{})
	if db.Number() != 2 || !db.Kept() {
		t.Errorf("record %d, kept: %t", db.Number(), db.Kept())
	}
	mustClose(t, db)
}

// TestFault reads an index whose table was cut under it: what would be the end of
// a process that believes its memory is an error.
func TestFault(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(2000))); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	if err := os.Truncate(filepath.Join(b.dir, b.tables[0].name()), 0); err != nil {
		t.Fatal(err)
	}
	v := db.At(1)
	if _, err := v.Lookup(1, "0000"); !errors.Is(err, ErrDamaged) {
		t.Errorf("lookup: %v", err)
	}
	if err := v.List(1, "", func(Dirent) bool { return true }); !errors.Is(err, ErrDamaged) {
		t.Errorf("list: %v", err)
	}
	if err := scan(db.tables, 1, []byte{spaceDirent}, func(_, _ []byte) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Errorf("scan: %v", err)
	}
}

// TestPrevious opens an index again: what was hashed before is believed only while
// the file has not changed.
func TestPrevious(t *testing.T) {
	t.Parallel()
	h := newHistory(11, 2)
	r := newRepository(t)
	h.commit(t, r, 1)
	mustClose(t, mustOpen(t, r, Options{})) // makes it
	first := mustOpen(t, r, Options{})
	name := tableOf(t, filepath.Join(r.IndexDir(), dirName(1)))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	state := func() fileState {
		var stat unix.Stat_t
		if err := unix.Stat(name, &stat); err != nil {
			t.Fatal(err)
		}
		return stateOf(&stat)
	}
	before := state()
	write := func(b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for state().ctime == before.ctime { // until the clock of the file system ticks
			if err := os.Chtimes(name, time.Time{}, time.Unix(before.mtime.Unix())); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(name, time.Time{}, time.Unix(before.mtime.Unix())); err != nil {
			t.Fatal(err)
		}
	}
	damaged := slices.Clone(whole)
	damaged[len(damaged)/2] ^= 0x10
	write(damaged) // in place, under the old time
	trusted := owners{0, uint32(os.Geteuid())}
	s, err := readSeal(filepath.Join(filepath.Dir(name), sealName), trusted)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.verified.now) != len(s.files()) {
		t.Errorf("%d files were verified", len(first.verified.now))
	}
	open := func(previous *DB) error {
		_, err := verifySeal(filepath.Dir(name), r.ID, 1, trusted, newVerified(previous))
		return err
	}
	if err := open(first); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("a changed table: %v", err)
	}
	// As if the file as it is now had been hashed.
	first.verified.now[state()] = s.files()[filepath.Base(name)].BLAKE3
	if err := open(first); err != nil {
		t.Errorf("what was verified: %v", err)
	}
	first.verified.now[state()] = archive.Hash{1}
	if err := open(first); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("verified as another file: %v", err)
	}
	write(whole)
	second := mustOpen(t, r, Options{Previous: first})
	mustClose(t, first)
	h.commit(t, r, 2)
	third := mustOpen(t, r, Options{Previous: second})
	h.check(t, third)
	mustClose(t, second)
	mustClose(t, third)
}

func tableOf(t *testing.T, dir string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(list) == 0 {
		t.Fatalf("tables: %v, %v", list, err)
	}
	return list[0]
}
