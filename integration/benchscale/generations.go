package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/backupfs/backupfs/internal/measure"
)

// changesEach is how many files change from one generation to the next.
const changesEach = 100

// measuredAt are the numbers of generations at which everything is measured.
func measuredAt() []int { return []int{1, 30, 300} }

// generations measures what could grow with the number of generations. The file 0
// changes in each of them, so it has the most versions.
func (b *bench) generations() (costs []cost, err error) {
	made, versions := 1, 1 // generations, and versions of the file 0
	var steps []func() error
	for _, at := range measuredAt() {
		steps = append(steps, func() error {
			for ; made < at; made++ {
				if err := b.createChanged(made); err != nil {
					return err
				}
				versions++
			}
			if err := b.measureAt(at, versions); err != nil {
				return err
			}
			made++ // the one with nothing changed
			costs = append(costs, b.cost)
			return nil
		})
	}
	return costs, b.run(steps...)
}

// createChanged makes a generation in which other files have changed than in the
// one before, but for the file 0.
func (b *bench) createChanged(generation int) error {
	for i := range changesEach {
		n := 0
		if i > 0 {
			n = 1 + (generation+i*(b.files/changesEach))%(b.files-1)
		}
		if err := os.WriteFile(filepath.Join(b.src(), b.file(n)), fmt.Appendf(nil, "generation %d", generation), 0o644); err != nil {
			return err
		}
	}
	cost, err := b.create(counts{Changed: changesEach, Unchanged: b.entries() - changesEach})
	if err != nil {
		return err
	}
	b.cost.changed = cost.Wall
	return b.setPublished()
}

func (b *bench) measureAt(generations, versions int) error {
	b.cost.at, b.cost.create = generations, 0
	note := func(what string, f measure.Figure) {
		b.table.Note(fmt.Sprintf("%d generations: %s", generations, what), f)
	}
	if generations > 1 {
		note(fmt.Sprintf("create after %d changes", changesEach), measure.Duration(b.cost.changed))
		note("from the log record to its published index", measure.Duration(b.cost.publish))
	}
	unchanged, err := b.create(counts{Unchanged: b.entries()})
	if err != nil {
		return err
	}
	b.cost.unchanged = unchanged.Wall
	note("create, nothing changed", unchanged.Of())
	if b.cost.ready, err = b.timeMount(); err != nil {
		return err
	}
	note("mount ready", measure.Duration(b.cost.ready))
	if err := b.measureMount(versions, note); err != nil {
		return err
	}
	search, out, err := b.product.Mkbackup("find", b.repository(), filepath.Base(b.file(3)))
	if err != nil {
		return err
	}
	if got := bytes.Count(out, []byte("\n")); got != b.files/filesPerDir {
		return fmt.Errorf("mkbackup find: %d lines, want %d", got, b.files/filesPerDir)
	}
	b.table.Limit(fmt.Sprintf("%d generations: search in all of them", generations), search.Of(), limitSearch.Seconds())
	return nil
}

// measureMount measures the newest generation, and the versions of a file.
func (b *bench) measureMount(versions int, note func(string, measure.Figure)) (err error) {
	m, err := b.mount()
	if err != nil {
		return err
	}
	defer closeMount(m, &err)
	tree := filepath.Join(m.Dir, "latest")
	if b.cost.read, err = b.firstRead(tree); err != nil {
		return err
	}
	note("first read of a random file, cold, p50", measure.Duration(b.cost.read))
	if b.cost.versions, err = b.listVersions(m.Dir, versions); err != nil {
		return err
	}
	b.table.Limit(fmt.Sprintf("%d generations: the versions of a file, cold", b.cost.at), measure.Duration(b.cost.versions), limitVersions.Seconds())
	if err := measure.DropCaches(); err != nil {
		return err
	}
	walk, err := b.walk(tree, m.PID)
	b.cost.find = walk.Wall
	note("find -printf through the mount, cold", walk.Of())
	return err
}

// listVersions lists all versions of the file 0, of which each generation with
// changes has another one.
func (b *bench) listVersions(mountpoint string, want int) (time.Duration, error) {
	if err := measure.DropCaches(); err != nil {
		return 0, err
	}
	began := time.Now()
	entries, err := os.ReadDir(filepath.Join(mountpoint, ".versions", b.file(0)))
	took := time.Since(began)
	if err == nil && len(entries) != want {
		err = fmt.Errorf(".versions has %d versions of %s, want %d", len(entries), b.file(0), want)
	}
	return took, err
}
