package index

import (
	"fmt"
	"strings"
)

// View is the index at one generation. It is a small value, good as long as its
// DB is open, and safe for concurrent use.
type View struct {
	db *DB
	ts uint64
}

// At returns the index as it was at the log record g. Where g is no generation,
// the directories of a source are those of its newest generation before.
func (d *DB) At(g uint64) View { return View{db: d, ts: g} }

// Lookup returns the entry of a directory that has the given name, which is
// compared as bytes. The error wraps ErrNotFound where there is none.
func (v View) Lookup(dir DirID, name string) (Dirent, error) {
	if name == "" || len(name) > maxName {
		return Dirent{}, ErrNotFound
	}
	var buf [inlineValue]byte
	value, err := getTo(buf[:0], v.db.tables, v.ts, appendDirentKey(make([]byte, 0, maxKey), dir, name))
	if err != nil {
		return Dirent{}, err
	}
	e, err := direntIn(dir, value)
	if err == nil && e.kind == kindGone {
		err = ErrNotFound
	}
	if err != nil {
		return Dirent{}, err
	}
	return v.complete(name, e)
}

// complete turns the value of an entry into the entry.
func (v View) complete(name string, e dirent) (Dirent, error) {
	if e.kind != kindDir {
		return Dirent{Name: name, Ino: e.ino, Attr: e.attr, DataBytes: e.dataBytes}, nil
	}
	n, err := v.Dir(e.dir)
	if err != nil {
		return Dirent{}, missing(err, "directory %d, called %q", e.dir, name)
	}
	return Dirent{Name: name, Ino: n.Ino, Dir: e.dir, Attr: n.Attr}, nil
}

// Dir returns a directory. The error wraps ErrNotFound where it did not exist.
func (v View) Dir(dir DirID) (Node, error) {
	var buf [inlineValue]byte
	value, err := getTo(buf[:0], v.db.tables, v.ts, appendNodeKey(make([]byte, 0, idKey), dir))
	if err != nil {
		return Node{}, err
	}
	n, there, err := decodeNode(value)
	if err == nil && !there {
		err = ErrNotFound
	}
	return n, err
}

// List yields the entries of a directory in the byte order of their names, those
// behind the name after, or all of them where that is "". It ends when yield
// returns false. A listing of all entries that are not as many as the directory
// has fails with ErrDamaged.
func (v View) List(dir DirID, after string, yield func(Dirent) bool) error {
	n, err := v.Dir(dir)
	if err != nil {
		return err
	}
	seen, stopped, err := v.list(dir, after, yield)
	if err == nil && after == "" && !stopped && seen != n.Children {
		err = fmt.Errorf("%w: directory %d has %d entries, %d are there", ErrDamaged, dir, n.Children, seen)
	}
	return err
}

func (v View) list(dir DirID, after string, yield func(Dirent) bool) (seen int, stopped bool, err error) {
	prefix := appendDirentKey(make([]byte, 0, idKey), dir, "")
	from := prefix
	if after != "" {
		from = append(appendDirentKey(make([]byte, 0, maxKey+1), dir, after), 0)
	}
	c := newCursor(v.db.tables, v.ts, prefix, scanOptions{})
	for more := c.seek(from); more && err == nil && !stopped; more = c.next() {
		var e dirent
		if e, err = direntIn(dir, c.value); err != nil || e.kind == kindGone {
			continue
		}
		var entry Dirent
		if entry, err = v.complete(string(c.key[idKey:]), e); err == nil {
			seen++
			stopped = !yield(entry)
		}
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return seen, stopped, err
}

// Resolve returns the entry at a path below a directory, "a/b/c"; "." is the
// directory itself. It does not follow symlinks.
func (v View) Resolve(root DirID, path string) (Dirent, error) {
	if path == "." {
		n, err := v.Dir(root)
		return Dirent{Name: ".", Ino: n.Ino, Dir: root, Attr: n.Attr}, err
	}
	e := Dirent{Dir: root}
	for name := range strings.SplitSeq(path, "/") {
		if e.Dir == 0 {
			return Dirent{}, ErrNotFound
		}
		var err error
		if e, err = v.Lookup(e.Dir, name); err != nil {
			return Dirent{}, err
		}
	}
	return e, nil
}
