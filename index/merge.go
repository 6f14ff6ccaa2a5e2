package index

import (
	"bytes"
	"math"
	"path/filepath"
	"slices"

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
	runTable    = 10 << 20 // bytes of keys and values in a table that a merge makes
)

// addRun makes tables the newest run.
func (b *builder) addRun(tables ...tableFile) {
	for i := range tables {
		tables[i].Level = 0
	}
	b.tables = append(b.tables, tables...)
	b.renumber()
}

// renumber gives the runs the levels at the bottom, the newest one the highest of
// those.
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

// mergeRuns merges the newest runs if there are more than limit. drop allows to
// drop what nobody sees.
func (b *builder) mergeRuns(limit int, drop bool) error {
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

// shrink merges all runs of a finished builder into one, and drops what nobody
// sees.
func (b *builder) shrink() error {
	inputs := b.tables
	b.tables = nil
	outputs, err := b.rewrite(inputs, true)
	if err != nil {
		return err
	}
	b.addRun(outputs...)
	b.manifest, err = writeManifest(b.fsys, b.dir, b.tables)
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
	in, err := openTables(b.dir, inputs)
	if err != nil {
		return nil, err
	}
	run := &runWriter{b: b, in: in}
	err = copyTables(in, run, b.number, drop)
	in.close()
	for _, t := range inputs {
		if err == nil {
			err = b.fsys.Remove(filepath.Join(b.dir, t.name()))
		}
	}
	return run.tables, err
}

// copyTables copies every version of every key, or those that are still needed at
// the record number and after it.
func copyTables(in *tables, run *runWriter, number uint64, drop bool) error {
	var s *sieve
	if drop {
		var err error
		if s, err = newSieve(in, number, forgottenGrace); err != nil {
			return err
		}
	}
	c := newCursor(in, math.MaxUint64, nil, scanOptions{allVersions: true})
	err := copyKeys(c, s, run.add)
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	if err != nil {
		run.discard()
		return err
	}
	return run.finish()
}

// copyKeys hands all versions of one key at a time to the sieve, nil where all are
// kept, and adds what that keeps.
func copyKeys(c *cursor, s *sieve, add func(key []byte, v version) error) error {
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
			if err := add(key, v); err != nil {
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
	in      *tables // what it is made of, nil where that is not tables
	tables  []tableFile
	out     *table.Builder
	raw     int // bytes of keys and values in out
	lastKey []byte
}

func (r *runWriter) add(key []byte, v version) error {
	if r.out != nil && r.raw >= runTable && !bytes.Equal(key, r.lastKey) {
		if err := r.finish(); err != nil {
			return err
		}
		if r.in != nil {
			r.in.release() // what was read of them is not needed again
		}
	}
	if r.out == nil {
		r.out, r.raw = newTableBuilder(runTable), 0
	}
	r.lastKey = append(r.lastKey[:0], key...)
	r.raw += len(key) + len(v.sealed)
	r.out.Add(r.b.versionedKey(key, v.at), y.ValueStruct{Value: v.sealed}, 0)
	return nil
}

// discard gives up the table that is not finished: its builder compresses in
// goroutines of its own, which wait for more.
func (r *runWriter) discard() {
	if r.out != nil {
		r.out.Finish()
		r.out.Close()
		r.out = nil
	}
}

func (r *runWriter) finish() error {
	if r.out == nil {
		return nil
	}
	out := r.out
	r.out = nil
	t, err := writeTable(r.b.fsys, r.b.dir, out, r.b.nextID)
	if err != nil {
		return err
	}
	r.b.nextID++
	r.tables = append(r.tables, t)
	return nil
}
