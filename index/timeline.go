package index

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Timeline tells what became of paths over the generations of one source. All
// versions of a key lie side by side, so what it costs grows with the number of
// changes, not with that of generations. It is good as long as its DB is open,
// and safe for concurrent use.
type Timeline struct {
	db   *DB
	gens []Generation
}

// Timeline returns the timeline of generations of one source, which are ordered
// by number and must not change: those that were not forgotten. What only others
// had does not exist on it.
func (d *DB) Timeline(gens []Generation) Timeline { return Timeline{db: d, gens: gens} }

// Version is a state of a path, and the generations that have it, which follow
// one another on the timeline.
type Version struct {
	Dirent
	First, Last Generation
}

// Versions returns the versions of a path ("a/b/c"; "." is the root), oldest
// first: none where no generation has the path. Consecutive states that Compare
// cannot tell apart are one version, its entry the one that came first; a path
// that was deleted and came again has a new version. No symlink is followed.
func (t Timeline) Versions(path string) ([]Version, error) {
	states, err := t.resolve(path)
	if err != nil {
		return nil, err
	}
	versions := []Version{}
	var last state
	for _, s := range states {
		same := len(versions) > 0 && last.to == s.from
		if same && last.Ino != s.Ino {
			if same, err = t.db.same(last.Dirent, s.Dirent); err != nil {
				return nil, err
			}
		}
		last = s
		if same {
			versions[len(versions)-1].Last = t.gens[s.to-1]
			continue
		}
		versions = append(versions, Version{Dirent: s.Dirent, First: t.gens[s.from], Last: t.gens[s.to-1]})
	}
	return versions, nil
}

// span is a run of generations of a timeline: those with from ≤ index < to.
type span struct{ from, to int }

// state is an entry during a span. That of a directory has no attributes until
// they were asked for.
type state struct {
	span
	Dirent
}

// resolve returns what was at a path, in the order of time.
func (t Timeline) resolve(path string) ([]state, error) {
	states := t.roots()
	if path != "." {
		for name := range strings.SplitSeq(path, "/") {
			var err error
			if states, err = t.lookup(states, name); err != nil {
				return nil, err
			}
		}
	}
	return t.describe(states)
}

// roots returns the root directories. A generation without a base has a new one.
func (t Timeline) roots() []state {
	var states []state
	for i, g := range t.gens {
		if n := len(states); n > 0 && states[n-1].Dir == g.Root {
			states[n-1].to++
		} else {
			states = append(states, state{span{i, i + 1}, Dirent{Name: ".", Dir: g.Root}})
		}
	}
	return states
}

// lookup returns what directories had under a name.
func (t Timeline) lookup(dirs []state, name string) ([]state, error) {
	if name == "" || len(name) > maxName {
		return nil, nil
	}
	var found []state
	for _, d := range dirs {
		if d.Dir == 0 {
			continue
		}
		first := len(found)
		err := t.each(appendDirentKey(nil, d.Dir, name), d.span, func(value []byte, s span) error {
			e, err := direntIn(d.Dir, value)
			if err == nil && e.kind != kindGone {
				found = append(found, state{s, Dirent{Name: name, Ino: e.ino, Dir: e.dir, Attr: e.attr, DataBytes: e.dataBytes}})
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		slices.Reverse(found[first:])
	}
	return found, nil
}

// describe adds the attributes of directories, which change in the course of
// their spans.
func (t Timeline) describe(states []state) ([]state, error) {
	var all []state
	for _, d := range states {
		if d.Dir == 0 {
			all = append(all, d)
			continue
		}
		first := len(all)
		err := t.each(appendNodeKey(nil, d.Dir), d.span, func(value []byte, s span) error {
			n, there, err := decodeNode(value)
			if err == nil && !there {
				err = fmt.Errorf("%w: directory %d, called %q, is gone and in use", ErrDamaged, d.Dir, d.Name)
			}
			all = append(all, state{s, Dirent{Name: d.Name, Ino: n.Ino, Dir: d.Dir, Attr: n.Attr}})
			return err
		})
		if err != nil {
			return nil, err
		}
		slices.Reverse(all[first:])
	}
	return all, nil
}

// each calls use with the values that a key has during a span, newest first, and
// the part of the span that has it. The value is valid during the call.
func (t Timeline) each(key []byte, during span, use func(value []byte, s span) error) error {
	c := newCursor(t.db.tables, t.gens[during.to-1].Number, key, scanOptions{allVersions: true})
	var err error
	for more := c.seek(key); more && err == nil && during.from < during.to && bytes.Equal(c.key, key); more = c.next() {
		if s, ok := t.since(c.at, &during); ok {
			err = use(c.value, s)
		}
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}

// since cuts off the end of a span, the generations from version on. ok is false
// where that are none.
func (t Timeline) since(version uint64, during *span) (s span, ok bool) {
	first := sort.Search(len(t.gens), func(i int) bool { return t.gens[i].Number >= version })
	s = span{max(during.from, first), during.to}
	if s.from >= s.to {
		return span{}, false
	}
	during.to = s.from
	return s, true
}
