package fs

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

const latestName = "latest"

// catalog is what the mount shows above the generations, at one number of the
// log. It never changes.
type catalog struct {
	last        uint64 // number of the newest log record
	generations map[uint64]index.Generation
	root        *listing
	sources     map[uint64]*listing // by node
}

// listing is a directory above the generations: the root, or a source.
type listing struct {
	node        uint64
	mtime       archive.Timespec
	generations []index.Generation // of the listed source, by number, with their names in the mount
	original    []index.Generation // the same ones with their own names
	format      NameFormat         // of the names in the mount
	entries     []listed           // in the order of their offsets
	named       map[string]listed
}

// listed is an entry of a listing.
type listed struct {
	name string
	node uint64
	mode uint32 // its type, a syscall.S_IF constant
	// offset orders the listing. It is the same in every catalog that has the
	// entry, so a reader neither misses nor repeats what is in both when the
	// catalog changes under it.
	offset     uint64
	generation index.Generation // itself, or where "latest" points
}

// Offsets within a listing: "." has 1 and ".." has 2; generations come in the
// order of their numbers, then "latest", then the sources.
const (
	offsetGenerations = 2 // + generation number, which is at least 1
	offsetLatest      = 1 << 30
	offsetSources     = 1 << 31 // + the node id without its flag
)

// newCatalog builds the catalog of all generations, which are ordered by
// number. source, if not empty, is the only one to show, its generations at the
// root. last is the number of the newest log record.
func newCatalog(all []index.Generation, source string, format NameFormat, last uint64) (*catalog, error) {
	c := &catalog{last: last, generations: make(map[uint64]index.Generation), sources: make(map[uint64]*listing)}
	bySource := make(map[string][]index.Generation)
	for _, g := range all {
		if err := checkGenerationNumber(g.Number); err != nil {
			return nil, err
		}
		c.generations[g.Number] = g
		bySource[g.Source] = append(bySource[g.Source], g)
	}
	root := bySource[source]
	if source == "" {
		delete(bySource, "")
	} else {
		clear(bySource)
	}
	c.root = c.newListing(rootNode, root, format, slices.Collect(maps.Keys(bySource)))
	for name, generations := range bySource {
		l := c.newListing(sourceNode(name), generations, format, nil)
		if other := c.sources[l.node]; other != nil { // one in 2^60
			return nil, fmt.Errorf("the sources %q and %q have the same node id: mount each with --source", name, other.original[0].Source)
		}
		c.sources[l.node] = l
		c.root.add(listed{name: name, node: l.node, mode: syscall.S_IFDIR, offset: offsetSources + l.node&^synthFlag})
	}
	slices.SortFunc(c.root.entries, func(a, b listed) int { return cmp.Compare(a.offset, b.offset) })
	return c, nil
}

// follows reports whether the catalog may be of the same log as an older one: it has no
// other generations by the numbers that the older one knows.
func (c *catalog) follows(old *catalog) bool {
	for number, g := range c.generations {
		before, known := old.generations[number]
		same := known && before.Source == g.Source && before.Time.Equal(g.Time) && before.Root == g.Root
		if number <= old.last && !same {
			return false
		}
	}
	return true
}

// listing returns the directory that a node is, nil where it is none.
func (c *catalog) listing(node uint64) *listing {
	if node == rootNode {
		return c.root
	}
	return c.sources[node]
}

// newListing lists generations, by the names that they have in the mount, and
// "latest"; the names of others in the listing are taken. Its time is that of the
// newest generation, with the number of the newest log record as nanoseconds: the
// kernel's copy of the listing is dropped when that changes.
func (c *catalog) newListing(node uint64, generations []index.Generation, format NameFormat, others []string) *listing {
	l := &listing{node: node, named: make(map[string]listed), original: generations, format: format}
	l.generations = format.rename(generations, append(others, latestName, versionsName))
	l.mtime.Nsec = uint32(c.last % 1e9)
	for _, g := range l.generations {
		c.generations[g.Number] = g
		l.add(generationEntry(g))
	}
	if len(generations) > 0 {
		newest := l.generations[len(generations)-1]
		l.mtime.Sec = newest.Time.Unix()
		l.add(listed{name: latestName, node: linkNode(newest.Number), mode: syscall.S_IFLNK,
			offset: offsetLatest, generation: newest})
	}
	return l
}

func generationEntry(g index.Generation) listed {
	return listed{name: g.Name, node: dirNode(g.Number, g.Root), mode: syscall.S_IFDIR,
		offset: offsetGenerations + g.Number, generation: g}
}

// add adds an entry, unless its name is taken.
func (l *listing) add(e listed) {
	if _, taken := l.named[e.name]; taken {
		return
	}
	l.named[e.name] = e
	l.entries = append(l.entries, e)
}

// directories returns how many directories the listing shows.
func (l *listing) directories() int {
	n := 0
	for _, e := range l.entries {
		if e.mode == syscall.S_IFDIR {
			n++
		}
	}
	return n
}

// lookup finds a name: a listed one, or a date or another prefix of a
// generation's name, which stands for the last one that has it. Where the mount has
// names of its own, a generation is found by its number behind them, and by the others,
// too. What is reached through a name that is not listed has nodes of its own.
func (l *listing) lookup(name string) (listed, bool) {
	if e, ok := l.named[name]; ok {
		return e, true
	}
	g, ok := l.find(name)
	e := generationEntry(g)
	e.node |= viaName(name)
	return e, ok
}

// find finds a generation by a name that is not listed. A whole name stands for no other
// generation than its own, which is not there any more.
func (l *listing) find(name string) (index.Generation, bool) {
	if g, ok := l.format.findNumbered(l.generations, name); ok {
		return g, true
	}
	if l.format.makes(name) {
		return index.Generation{}, false
	}
	if g, ok := l.format.findPrefix(l.generations, name); ok {
		return g, true
	}
	return index.FindName(l.original, name)
}

// after returns the entries behind an offset.
func (l *listing) after(offset uint64) []listed {
	i, _ := slices.BinarySearchFunc(l.entries, offset, func(e listed, offset uint64) int {
		return cmp.Compare(e.offset, offset+1)
	})
	return l.entries[i:]
}

// findGeneration resolves what a user calls a generation; see index.Find. A
// source that was chosen need not be repeated in spec.
func findGeneration(all []index.Generation, source, spec string) (index.Generation, error) {
	if source != "" && !strings.Contains(spec, "/") {
		spec = source + "/" + spec
	}
	return index.Find(all, spec)
}

func checkSource(all []index.Generation, source string) error {
	if source != "" && len(index.OfSource(all, source)) == 0 {
		return fmt.Errorf("no generation of a source %q: `mkbackup list` shows those there are", source)
	}
	return nil
}
