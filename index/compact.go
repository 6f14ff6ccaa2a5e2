package index

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
)

// A run is a sorted sequence of tables that do not overlap. Every record adds one
// or more, and every read looks into all of them. So when there are more than
// maxRuns, the newest ones are merged into one: as many as it takes to leave
// keptRuns of the others, and each further one that is not larger than fanout
// times what is merged already. So a value is rewritten about fanout times while
// the index grows by that factor, not at every merge. A merge of all runs also
// drops what no generation sees any more.
//
// Each run lies on a level of badger of its own, the newest on the highest.
// badger never compacts here, so a level means nothing else.
const (
	maxRuns     = 16
	keptRuns    = 8
	fanout      = 4
	flushedRuns = 24       // more of them are merged while a record is applied
	maxLevels   = 32       // of badger; level 0, where tables overlap, stays empty
	runTable    = 16 << 20 // bytes of a table that a merge makes
)

// addRun makes tables the newest run.
func (b *builder) addRun(tables ...tableFile) {
	for i := range tables {
		tables[i].Level = 0
	}
	b.tables = append(b.tables, tables...)
	b.renumber()
}

// renumber gives the runs the lowest levels, and the newest run the highest of
// them.
func (b *builder) renumber() {
	slices.SortStableFunc(b.tables, func(s, t tableFile) int { return t.Level - s.Level })
	level, last := maxLevels, -1
	for i := range b.tables {
		t := &b.tables[i]
		if t.Level != last {
			level, last = level-1, t.Level
		}
		t.Level = level
	}
}

// compact merges the newest runs if there are more than limit. drop allows to
// drop what nobody sees.
func (b *builder) compact(limit int, drop bool) error {
	level := planMerge(b.tables, limit)
	if level == 0 {
		return nil
	}
	var inputs, kept []tableFile
	for _, t := range b.tables {
		if t.Level <= level {
			inputs = append(inputs, t)
		} else {
			kept = append(kept, t)
		}
	}
	outputs, err := b.rewrite(inputs, drop && len(kept) == 0)
	b.tables = kept
	b.addRun(outputs...)
	return err
}

// planMerge returns the lowest of the levels to merge, 0 where none are.
func planMerge(tables []tableFile, limit int) int {
	var stored [maxLevels]int64
	lowest, runs := maxLevels, 0
	for _, t := range tables {
		if stored[t.Level] == 0 {
			runs++
		}
		stored[t.Level] += t.Stored
		lowest = min(lowest, t.Level)
	}
	if runs <= limit {
		return 0
	}
	level := lowest + 1 // at least two
	sum := stored[lowest] + stored[level]
	for rest := runs - 2; rest > keptRuns || rest > 0 && stored[level+1] <= fanout*sum; rest-- {
		level++
		sum += stored[level]
	}
	return level
}

// rewrite merges tables into a run. The inputs are no longer in the directory
// then. drop says that they are all there are, and that it may drop what nobody
// sees.
func (b *builder) rewrite(inputs []tableFile, drop bool) ([]tableFile, error) {
	sub := filepath.Join(b.dir, "merged")
	if err := os.Mkdir(sub, 0o700); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	defer os.RemoveAll(sub)
	for _, t := range inputs {
		if err := os.Rename(filepath.Join(b.dir, t.name()), filepath.Join(sub, t.name())); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	if err := writeManifest(sub, inputs); err != nil {
		return nil, err
	}
	db, err := openTables(sub)
	if err != nil {
		return nil, err
	}
	run := &runWriter{b: b}
	err = copyTables(db, run, b.number, drop)
	closeTables(db)
	return run.tables, err
}

// copyTables copies every version of every key, or those that are still needed at
// the record number and after it.
func copyTables(db *badger.DB, run *runWriter, number uint64, drop bool) error {
	var s *sieve
	if drop {
		var err error
		if s, err = newSieve(db, number); err != nil {
			return err
		}
	}
	c := newCursor(db, math.MaxUint64, nil, scanOptions{allVersions: true})
	err := copyKeys(c, run, s)
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return run.finish()
}

// copyKeys hands all versions of one key at a time to the sieve.
func copyKeys(c *cursor, run *runWriter, s *sieve) error {
	var all []version
	var key []byte
	for more := c.seek(nil); more; {
		key = append(key[:0], c.key...)
		n := 0
		for ; more && bytes.Equal(c.key, key); more = c.next() {
			if n == len(all) {
				all = append(all, version{})
			}
			all[n].at, all[n].sealed = c.at, append(all[n].sealed[:0], c.sealed...)
			n++
		}
		kept := all[:n]
		if s != nil {
			var err error
			if kept, err = s.keep(key, kept); err != nil {
				return err
			}
		}
		for _, v := range kept {
			if err := run.add(key, v); err != nil {
				return err
			}
		}
	}
	return c.err
}

// version is one version of a key.
type version struct {
	at     uint64
	sealed []byte // the value with its checksum
}

func (v version) value() []byte { return v.sealed[:len(v.sealed)-sumSize] }

// runWriter writes a sorted run of tables. All versions of a key are in one.
type runWriter struct {
	b       *builder
	tables  []tableFile
	out     *table.Builder
	lastKey []byte
}

func (r *runWriter) add(key []byte, v version) error {
	if r.out != nil && r.out.ReachedCapacity() && !bytes.Equal(key, r.lastKey) {
		if err := r.finish(); err != nil {
			return err
		}
	}
	if r.out == nil {
		r.out = newTableBuilder(runTable)
	}
	r.lastKey = append(r.lastKey[:0], key...)
	r.out.Add(r.b.versionedKey(key, v.at), y.ValueStruct{Value: v.sealed}, 0)
	return nil
}

func (r *runWriter) finish() error {
	if r.out == nil {
		return nil
	}
	t, err := writeTable(r.b.dir, r.out, r.b.nextID)
	if err != nil {
		return err
	}
	r.out = nil
	r.b.nextID++
	r.tables = append(r.tables, t)
	return nil
}

// forgottenGrace is how long the versions of a forgotten generation stay, so
// that a mount that has files of it open can go on.
const forgottenGrace = 24 * time.Hour

// sieve tells which versions of which keys are still needed. The keys are
// offered in their order: directories and their entries come before inodes.
type sieve struct {
	needed []uint64         // ascending: the timestamps at which somebody may read
	died   map[DirID]uint64 // when a directory died
	inos   bitmap           // inodes that something refers to
	kept   []version        // scratch
}

// newSieve prepares a sieve for an index that covers the record number.
func newSieve(db *badger.DB, number uint64) (*sieve, error) {
	m, err := readMeta(db, number)
	if err != nil {
		return nil, err
	}
	s := &sieve{died: map[DirID]uint64{}, needed: []uint64{number}, inos: newBitmap(m.inos)}
	if err := s.needGenerations(db, number, m.time); err != nil {
		return nil, err
	}
	err = scan(db, number, []byte{spaceSource}, func(_, value []byte) error {
		h, err := decodeHead(value)
		s.needed = append(s.needed, h.number)
		return err
	})
	if err != nil {
		return nil, err
	}
	sort.Slice(s.needed, func(i, j int) bool { return s.needed[i] < s.needed[j] })
	// A link that appears later may share the inode of its group.
	return s, scan(db, number, []byte{spaceGroup}, func(_, value []byte) error {
		g, err := decodeGroup(value)
		s.inos.set(g.ino)
		return err
	})
}

func (s *sieve) needGenerations(db *badger.DB, number uint64, now time.Time) error {
	return scan(db, number, []byte{spaceGeneration}, func(key, value []byte) error {
		g, err := decodeGeneration(keyID(key), value)
		if !g.gone || now.Sub(g.forgotten) < forgottenGrace {
			s.needed = append(s.needed, keyID(key))
		}
		return err
	})
}

// keep returns the versions of a key, newest first, that are needed.
func (s *sieve) keep(key []byte, versions []version) ([]version, error) {
	switch key[0] {
	case spaceNode:
		return s.keepNode(DirID(keyID(key)), versions)
	case spaceDirent:
		return s.keepDirent(DirID(keyID(key)), versions)
	case spaceInode, spaceSegment, spaceXattr:
		if !s.inos.has(Ino(keyID(key))) {
			return nil, nil
		}
	case spaceGeneration:
		return s.keepGeneration(key, versions)
	}
	return versions[:1], nil
}

func (s *sieve) keepNode(d DirID, versions []version) ([]version, error) {
	if versions[0].value()[0] == kindGone {
		s.died[d] = versions[0].at
	}
	kept := s.visible(versions, math.MaxUint64)
	for _, v := range kept {
		n, there, err := decodeNode(v.value())
		if err != nil {
			return nil, err
		}
		if there {
			s.inos.set(n.Ino)
		}
	}
	return kept, nil
}

func (s *sieve) keepDirent(d DirID, versions []version) ([]version, error) {
	end, dead := s.died[d]
	if !dead {
		end = math.MaxUint64
	}
	kept := s.visible(versions, end)
	for _, v := range kept {
		e, err := decodeDirent(v.value())
		if err != nil {
			return nil, err
		}
		if e.kind == kindLeaf {
			s.inos.set(e.ino)
		}
	}
	return kept, nil
}

// keepGeneration drops a generation that was forgotten and that nobody reads.
func (s *sieve) keepGeneration(key []byte, versions []version) ([]version, error) {
	number := keyID(key)
	g, err := decodeGeneration(number, versions[0].value())
	if g.gone && !s.neededIn(number, number+1) {
		return nil, err
	}
	return versions[:1], err
}

// visible returns those versions that a needed timestamp before end sees. A gone
// value with nothing older below it says nothing.
func (s *sieve) visible(versions []version, end uint64) []version {
	kept := s.kept[:0]
	for _, v := range versions {
		if v.at < end && s.neededIn(v.at, end) {
			kept = append(kept, v)
		}
		end = min(end, v.at)
	}
	s.kept = kept
	for n := len(kept); n > 0 && kept[n-1].value()[0] == kindGone; n-- {
		kept = kept[:n-1]
	}
	return kept
}

// neededIn reports whether a needed timestamp t has from ≤ t < end.
func (s *sieve) neededIn(from, end uint64) bool {
	i := sort.Search(len(s.needed), func(i int) bool { return s.needed[i] >= from })
	return i < len(s.needed) && s.needed[i] < end
}

// bitmap is a set of inode numbers, one bit for each that was given.
type bitmap []uint64

func newBitmap(inos uint64) bitmap { return make(bitmap, (inos+uint64(FirstIno)/2)/64+1) }

func (b bitmap) set(i Ino) {
	if n := uint64(i) >> 1; n/64 < uint64(len(b)) {
		b[n/64] |= 1 << (n % 64)
	}
}

func (b bitmap) has(i Ino) bool {
	n := uint64(i) >> 1
	return n/64 < uint64(len(b)) && b[n/64]&(1<<(n%64)) != 0
}

// scan calls use with the key and the value of every key that begins with
// prefix, at a timestamp, in order. The slices are valid during the call.
func scan(db *badger.DB, ts uint64, prefix []byte, use func(key, value []byte) error) error {
	c := newCursor(db, ts, prefix, scanOptions{})
	var err error
	for more := c.seek(prefix); more && err == nil; more = c.next() {
		err = use(c.key, c.value)
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}
