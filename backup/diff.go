package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// PathChange is a path that is not the same in two generations.
type PathChange struct {
	Change        Change
	Path          string
	Before, After index.Dirent     // the zero Dirent where there is none
	Difference    index.Difference // where it is Changed
}

// Diff yields the paths at or below path that differ between two generations, in
// path order: depth first, by component. Below a path that came or went every
// path is one. Between generations of one source that are based on one another
// only what the log says to have changed is looked at, unless a record is damaged, or gone since
// a checkpoint says what it said. The error wraps
// index.ErrNotFound where neither generation has the path.
func Diff(ctx context.Context, repo *archive.Repository, db *index.DB, from, to index.Generation, path string, yield func(PathChange) error) error {
	d := diff{ctx: ctx, db: db, from: db.At(from.Number), to: db.At(to.Number), yield: yield}
	a, errA := d.from.Resolve(from.Root, path)
	b, errB := d.to.Resolve(to.Root, path)
	if errA != nil && errB != nil {
		return errors.Join(errA, errB)
	}
	if err := errors.Join(unlessMissing(errA), unlessMissing(errB)); err != nil {
		return err
	}
	t, err := touchedBetween(ctx, repo, min(from.Number, to.Number), max(from.Number, to.Number), from.Source == to.Source)
	d.all = err != nil // the log only saves work: what it says is in the index, too
	return d.compare(path, a, b, t.at(path))
}

// unlessMissing returns an error that is not index.ErrNotFound.
func unlessMissing(err error) error {
	if errors.Is(err, index.ErrNotFound) {
		return nil
	}
	return err
}

type diff struct {
	ctx      context.Context
	db       *index.DB
	from, to index.View
	all      bool // what was touched is not known: look at everything
	yield    func(PathChange) error
}

// compare compares what is at a path. The zero Dirent means nothing. Below a
// directory that is the same one, only what was touched can differ.
func (d *diff) compare(path string, a, b index.Dirent, t *touched) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if err := d.entry(path, a, b); err != nil {
		return err
	}
	if a.Dir != b.Dir || d.all && a.Dir != 0 {
		return d.trees(path, a.Dir, b.Dir)
	}
	if a.Dir == 0 || t == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(t.children)) {
		x, err := d.from.Lookup(a.Dir, name)
		if err = unlessMissing(err); err != nil {
			return err
		}
		y, err := d.to.Lookup(b.Dir, name)
		if err = unlessMissing(err); err != nil {
			return err
		}
		if err := d.compare(join(path, name), x, y, t.children[name]); err != nil {
			return err
		}
	}
	return nil
}

// entry yields the difference of two entries.
func (d *diff) entry(path string, a, b index.Dirent) error {
	c := PathChange{Change: Changed, Path: path, Before: a, After: b}
	switch {
	case a.Ino == 0 && b.Ino == 0: // touched in between, and gone again
		return nil
	case a.Ino == 0:
		c.Change = Added
	case b.Ino == 0:
		c.Change = Removed
	default:
		var err error
		if c.Difference, err = d.db.Compare(a, b); err != nil || !c.Difference.Any() {
			return err
		}
	}
	return d.yield(c)
}

// trees compares two directories that have nothing in common but their path; 0
// means none.
func (d *diff) trees(path string, a, b index.DirID) error {
	before, err := list(d.from, a)
	if err != nil {
		return err
	}
	after, err := list(d.to, b)
	if err != nil {
		return err
	}
	for len(before) > 0 || len(after) > 0 {
		var x, y index.Dirent
		if len(after) == 0 || len(before) > 0 && before[0].Name <= after[0].Name {
			x = before[0]
		}
		if len(before) == 0 || len(after) > 0 && after[0].Name <= before[0].Name {
			y = after[0]
		}
		name := max(x.Name, y.Name) // one is "", or they are the same
		if x.Ino != 0 {
			before = before[1:]
		}
		if y.Ino != 0 {
			after = after[1:]
		}
		if err := d.compare(join(path, name), x, y, nil); err != nil {
			return err
		}
	}
	return nil
}

// list returns the entries of a directory; 0 has none.
func list(v index.View, dir index.DirID) (entries []index.Dirent, err error) {
	if dir == 0 {
		return nil, nil
	}
	err = v.List(dir, "", func(e index.Dirent) bool {
		entries = append(entries, e)
		return true
	})
	return entries, err
}

// touched is a path that the log names, or one above such a path.
type touched struct {
	children map[string]*touched
}

// at returns what was touched at a path and below.
func (t *touched) at(path string) *touched {
	for name := range components(path) {
		if t == nil {
			return nil
		}
		t = t.children[name]
	}
	return t
}

func (t *touched) add(path string) {
	for name := range components(path) {
		if t.children == nil {
			t.children = make(map[string]*touched)
		}
		if t.children[name] == nil {
			t.children[name] = &touched{}
		}
		t = t.children[name]
	}
}

// components yields the names in a path of a generation; "." has none.
func components(path string) iter.Seq[string] {
	if path == "." {
		return func(func(string) bool) {}
	}
	return strings.SplitSeq(path, "/")
}

// touchedBetween returns the paths that differ between two generations of a
// source, as the log says, and those that differed in between. It is nil where
// they are not based on one another: then they have no directory in common.
func touchedBetween(ctx context.Context, repo *archive.Repository, older, newer uint64, sameSource bool) (*touched, error) {
	if !sameSource {
		return nil, nil
	}
	t := &touched{}
	for n := newer; n > older; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		base, err := t.read(repo, n)
		if err != nil || base < older {
			return nil, err
		}
		n = base
	}
	return t, nil
}

// read adds the paths that a record names, unless it is complete. It returns the
// base of the record.
func (t *touched) read(repo *archive.Repository, number uint64) (base uint64, err error) {
	record, err := repo.OpenRecord(number)
	if err != nil {
		return 0, err
	}
	defer record.Close()
	if base = record.Header().Base; base == 0 {
		return 0, nil
	}
	for {
		line, err := record.Next()
		switch {
		case errors.Is(err, io.EOF):
			return base, nil
		case err != nil:
			return 0, fmt.Errorf("what changed: %w", err)
		case line.Entry != nil:
			t.add(line.Entry.Path)
		case line.Gone != "":
			t.add(line.Gone)
		}
	}
}
