package treetest

import (
	"fmt"
	"slices"
	"sort"
)

// Options leaves out of a comparison what cannot be equal. The zero value
// compares everything that an Entry holds but inode numbers and holes.
type Options struct {
	Holes     bool // compare where the data lies, in blocks of 4 KiB
	NoXattrs  bool
	NoOwner   bool
	NoMtime   bool
	NoDirTime bool // ignore the mtime of directories only
	NoNlink   bool // ignore link counts: trees that hold only some links of an inode
	NoRoot    bool // ignore the attributes of the root
	// SkipXattr leaves out single names.
	SkipXattr func(name string) bool
}

// Diff returns one line for every difference between two trees, in the order
// of the paths; none means that they are equal.
func Diff(want, got *Tree, o Options) []string {
	var lines []string
	for _, p := range union(want, got) {
		w, g := want.Entries[p], got.Entries[p]
		switch {
		case g == nil:
			lines = append(lines, fmt.Sprintf("%q: missing (%s)", p, w.Type))
		case w == nil:
			lines = append(lines, fmt.Sprintf("%q: not expected (%s)", p, g.Type))
		case p == "." && o.NoRoot:
		default:
			for _, d := range diffEntry(w, g, o) {
				lines = append(lines, fmt.Sprintf("%q: %s", p, d))
			}
		}
	}
	return lines
}

func union(a, b *Tree) []string {
	paths := a.Paths()
	for p := range b.Entries {
		if a.Entries[p] == nil {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	return paths
}

func diffEntry(w, g *Entry, o Options) []string {
	if w.Type != g.Type {
		return []string{fmt.Sprintf("type %s, want %s", g.Type, w.Type)}
	}
	var d []string
	field := func(differs bool, name string, want, got any) {
		if differs {
			d = append(d, fmt.Sprintf("%s %v, want %v", name, got, want))
		}
	}
	field(w.Mode != g.Mode, "mode", fmt.Sprintf("%04o", w.Mode), fmt.Sprintf("%04o", g.Mode))
	field(!o.NoOwner && (w.UID != g.UID || w.GID != g.GID), "owner", [2]uint32{w.UID, w.GID}, [2]uint32{g.UID, g.GID})
	field(w.Size != g.Size, "size", w.Size, g.Size)
	noTime := o.NoMtime || o.NoDirTime && w.Type == Dir
	field(!noTime && (w.Sec != g.Sec || w.Nsec != g.Nsec), "mtime", [2]int64{w.Sec, w.Nsec}, [2]int64{g.Sec, g.Nsec})
	field(w.Major != g.Major || w.Minor != g.Minor, "device", [2]uint32{w.Major, w.Minor}, [2]uint32{g.Major, g.Minor})
	field(w.Target != g.Target, "target", brief(w.Target), brief(g.Target))
	field(w.Hash != g.Hash, "content", fmt.Sprintf("%x", w.Hash[:6]), fmt.Sprintf("%x", g.Hash[:6]))
	field(w.Link != g.Link, "hard link of", fmt.Sprintf("%q", w.Link), fmt.Sprintf("%q", g.Link))
	countLinks := !o.NoNlink && w.Type != Dir && !w.whiteout()
	field(countLinks && w.Nlink != g.Nlink, "links", w.Nlink, g.Nlink)
	if o.Holes && w.Type == File {
		a, b := wholeBlocks(w.Data, w.Size), wholeBlocks(g.Data, g.Size)
		field(!slices.Equal(a, b), "data", a, b)
	}
	if !o.NoXattrs {
		d = append(d, diffXattrs(w.Xattrs, g.Xattrs, o.SkipXattr)...)
	}
	return d
}

func diffXattrs(want, got map[string]string, skip func(string) bool) []string {
	var d []string
	for name, w := range want {
		g, ok := got[name]
		switch {
		case skip != nil && skip(name):
		case !ok:
			d = append(d, fmt.Sprintf("xattr %q missing", name))
		case w != g:
			d = append(d, fmt.Sprintf("xattr %q is %s, want %s", name, brief(g), brief(w)))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && (skip == nil || !skip(name)) {
			d = append(d, fmt.Sprintf("xattr %q not expected", name))
		}
	}
	sort.Strings(d)
	return d
}

func brief(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%q… (%d bytes)", s[:60], len(s))
	}
	return fmt.Sprintf("%q", s)
}
