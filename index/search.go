package index

import (
	"cmp"
	"slices"
	"strings"

	"github.com/backupfs/backupfs/archive"
)

// Found is a path that a search found.
type Found struct {
	Path   string
	Source string
	Type   archive.FileType // when it was seen last
	Spans  []Span           // when it was there, in the order of time
}

// Span is a run of generations that follow one another among those of a source.
type Span struct{ First, Last Generation }

// Search returns the paths that match accepts and any of the generations has,
// by source and path. gens are ordered by number, and those of a source must be
// all that were not forgotten. One pass over the entries of all directories
// answers for every generation: match is called once for each entry of each
// directory, with the path of the directory ("" for the root) and the name in
// it. In memory are all directories and what was found.
func (d *DB) Search(gens []Generation, match func(dir, name string) bool) ([]Found, error) {
	s := search{db: d, match: match, dirs: map[DirID]*searchDir{}, found: map[searchKey]*searchFound{}}
	for _, g := range gens {
		s.add(g)
	}
	if err := s.run(); err != nil {
		return nil, err
	}
	return s.results(), nil
}

// search is the state of a Search. Directories are numbered in the order in which
// they came to be, and so the entry of a directory is met before its own entries.
type search struct {
	db      *DB
	match   func(dir, name string) bool
	sources map[string]*Timeline
	dirs    map[DirID]*searchDir
	found   map[searchKey]*searchFound
}

// searchDir is a directory, and the generations that have it.
type searchDir struct {
	span
	line   *Timeline
	parent *searchDir // nil of a root
	name   string
}

// path returns the path of the directory, "" of a root.
func (d *searchDir) path() string {
	var names []string
	for ; d.parent != nil; d = d.parent {
		names = append(names, d.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

type searchKey struct {
	line *Timeline
	path string
}

type searchFound struct {
	spans []span
	kind  archive.FileType // of what was there last
}

// add takes a generation into the search.
func (s *search) add(g Generation) {
	if s.sources == nil {
		s.sources = map[string]*Timeline{}
	}
	line := s.sources[g.Source]
	if line == nil {
		line = &Timeline{db: s.db}
		s.sources[g.Source] = line
	}
	line.gens = append(line.gens, g)
	n := len(line.gens)
	if s.dirs[g.Root] == nil {
		s.dirs[g.Root] = &searchDir{span: span{n - 1, n}, line: line}
	}
	s.dirs[g.Root].to = n
}

func (s *search) run() error {
	prefix := []byte{spaceDirent}
	c := newCursor(s.db.tables, s.db.number, prefix, scanOptions{allVersions: true})
	err := s.scan(c, c.seek(prefix))
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}

// scan looks at every entry.
func (s *search) scan(c *cursor, more bool) error {
	var (
		key   []byte
		id    DirID
		dir   *searchDir
		path  string
		entry searchEntry
	)
	for ; more; more = c.next() {
		if string(key) != string(c.key) {
			s.finish(dir, path, entry)
			key = append(key[:0], c.key...)
			if now := DirID(keyID(key)); now != id {
				id, dir = now, s.dirs[now]
				if dir != nil {
					path = dir.path()
				}
			}
			entry = searchEntry{spans: entry.spans[:0]}
			if dir != nil {
				entry.name, entry.rest = string(key[idKey:]), dir.span
			}
		}
		if dir == nil {
			continue
		}
		if err := s.version(dir, &entry, c); err != nil {
			return err
		}
	}
	s.finish(dir, path, entry)
	return nil
}

// searchEntry is a name in a directory.
type searchEntry struct {
	name  string
	rest  span // what older versions are still to be seen in
	spans []span
	kind  archive.FileType // of the newest version
}

// version takes one version of an entry, which come newest first.
func (s *search) version(dir *searchDir, entry *searchEntry, c *cursor) error {
	seen, ok := dir.line.since(c.at, &entry.rest)
	if !ok {
		return nil
	}
	e, err := direntIn(DirID(keyID(c.key)), c.value)
	if err != nil || e.kind == kindGone {
		return err
	}
	kind := e.attr.Type
	if e.kind == kindDir {
		kind = archive.TypeDir
		s.dirs[e.dir] = &searchDir{span: seen, line: dir.line, parent: dir, name: entry.name}
	}
	if len(entry.spans) == 0 {
		entry.kind = kind
	}
	entry.spans = append(entry.spans, seen)
	return nil
}

// finish keeps an entry that matches.
func (s *search) finish(dir *searchDir, path string, e searchEntry) {
	if len(e.spans) == 0 || !s.match(path, e.name) {
		return
	}
	if path != "" {
		path += "/"
	}
	key := searchKey{dir.line, path + e.name}
	f := s.found[key]
	if f == nil {
		f = &searchFound{}
		s.found[key] = f
	}
	f.kind = e.kind // a directory that is met later came to be later
	f.spans = append(f.spans, e.spans...)
}

func (s *search) results() []Found {
	list := make([]Found, 0, len(s.found))
	for key, f := range s.found {
		gens := key.line.gens
		found := Found{Path: key.path, Source: gens[0].Source, Type: f.kind}
		for _, s := range merged(f.spans) {
			found.Spans = append(found.Spans, Span{gens[s.from], gens[s.to-1]})
		}
		list = append(list, found)
	}
	slices.SortFunc(list, func(a, b Found) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), ComparePaths(a.Path, b.Path))
	})
	return list
}

// merged sorts spans and joins those that touch.
func merged(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var all []span
	for _, s := range spans {
		if n := len(all); n > 0 && all[n-1].to >= s.from {
			all[n-1].to = max(all[n-1].to, s.to)
		} else {
			all = append(all, s)
		}
	}
	return all
}
