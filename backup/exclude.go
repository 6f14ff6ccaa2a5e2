package backup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/gitignore"
)

// Excludes says what is not backed up although one of the paths holds it. The
// zero value excludes nothing. Patterns are matched against the whole path in the
// generation; everything else is only looked at in and below the given paths.
//
// An excluded directory is neither entered nor listed. A given path that is
// excluded, or lies in something excluded, is a problem.
type Excludes struct {
	Patterns      gitignore.List
	Caches        bool     // what lies beside a CACHEDIR.TAG with the right signature
	NoDump        bool     // what has the file attribute "no dump", the d of chattr(1)
	IfPresent     []string // what lies beside an entry of one of these names
	OneFileSystem bool     // what other mounts hold: their directories are stored empty
}

func (x *Excludes) none() bool {
	return len(x.Patterns) == 0 && !x.Caches && !x.NoDump && len(x.IfPresent) == 0 && !x.OneFileSystem
}

// Of the Cache Directory Tagging Specification: a directory that has a regular
// file of this name, which begins with this text, is a cache.
const (
	cacheTag       = "CACHEDIR.TAG"
	cacheSignature = "Signature: 8a477f597d28d172789f06886806bc55"
)

var (
	errNoDump     = errors.New("excluded: it has the attribute nodump")
	errOtherMount = errors.New("excluded: it is a mount point")
)

// selectionOf returns the selection of an entry of a directory. device is the one that holds
// the directory.
func (c *creation) selectionOf(e *scannedEntry, s *selection, device uint64) *selection {
	return c.within(e, s.child(e.name), device)
}

// within returns the selection of an entry, which is s unless that ends where the entry is a
// mount. device is the one that holds the directory above.
func (c *creation) within(e *scannedEntry, s *selection, device uint64) *selection {
	if c.options.Exclude.OneFileSystem && s.all && !s.given && e.err == nil && e.Type == archive.TypeDir && (e.mounted || e.dev != device) {
		return &selection{edge: true, children: s.children}
	}
	return s
}

// included returns the entries of the directory at path without those that are
// excluded, each of which it reports.
func (c *creation) included(d *scanned, path string, s *selection) []scannedEntry {
	if c.options.Exclude.none() {
		return d.entries
	}
	if s.edge {
		c.exclude(path, errOtherMount)
		if !kernelFileSystem(fileSystem(d.fd)) {
			c.mounts = append(c.mounts, Printable("/"+path))
		}
	}
	var markers []string
	if s.all {
		markers = c.markers(d)
	}
	if len(markers) > 0 && s.given {
		c.notef("%s: only %s is backed up of what is in it", Printable("/"+path), Printable(markers[0]))
	}
	return slices.DeleteFunc(d.entries, func(e scannedEntry) bool {
		at, child := join(path, e.name), s.child(e.name)
		err := c.excluded(&e, at, child)
		if err == nil && len(markers) > 0 && !slices.Contains(markers, e.name) {
			err = fmt.Errorf("excluded: there is a %s beside it", Printable(markers[0]))
		}
		if err != nil {
			child.leaves(at, func(leaf string) { c.problem(leaf, err) })
			c.exclude(at, err)
		}
		if e.err != nil && errors.Is(err, errOtherMount) {
			c.notef("%s is left out, not stored as an empty directory: it is a mount point that cannot be looked at: %v", Printable("/"+at), e.err)
		}
		return err != nil
	})
}

// excluded returns why an entry is excluded by itself, nil if it is not.
func (c *creation) excluded(e *scannedEntry, path string, s *selection) error {
	x := &c.options.Exclude
	dir := e.Type == archive.TypeDir
	if p := x.Patterns.Match(path, dir); p != nil {
		return fmt.Errorf("excluded by the pattern %s", Printable(p.String()))
	}
	switch {
	case x.NoDump && s.all && e.noDump:
		return errNoDump
	case x.OneFileSystem && s.all && !s.given && e.mounted && e.err != nil:
		return fmt.Errorf("%w that cannot be looked at: %w", errOtherMount, e.err)
	case x.OneFileSystem && s.all && !s.given && e.mounted && !dir:
		return errOtherMount
	}
	return nil
}

// exclude counts and reports an excluded path.
func (c *creation) exclude(path string, why error) {
	c.summary.Excluded++
	if c.options.Events.Excluded != nil && !c.again {
		c.options.Events.Excluded(path, why)
	}
}

// noteMounts says which file systems are left out, those of the kernel apart: what one
// forgets to back up is on them.
func (c *creation) noteMounts() {
	const shown = 10
	names, more := c.mounts, ""
	if len(names) > shown {
		names, more = names[:shown], fmt.Sprintf(" and %d more", len(names)-shown)
	}
	if len(names) > 0 {
		c.notef("other file systems are left out: %s%s", strings.Join(names, ", "), more)
	}
}

// markers returns the names in a directory which say that the others are excluded.
func (c *creation) markers(d *scanned) (names []string) {
	x := &c.options.Exclude
	for i := range d.entries {
		e := &d.entries[i]
		if slices.Contains(x.IfPresent, e.name) || x.Caches && e.name == cacheTag && e.isCacheTag(d.fd, &c.leases) {
			names = append(names, e.name)
		}
	}
	return names
}

// isCacheTag reports whether the entry of a directory begins with the signature.
// One that cannot be read does not: the attempt to back it up says why.
func (e *scannedEntry) isCacheTag(dir int, leases *patience) bool {
	if e.err != nil || e.Type != archive.TypeFile {
		return false
	}
	fd, err := openBeneath(dir, e.name, unix.O_RDONLY, leases)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), e.name)
	defer f.Close()
	start := make([]byte, len(cacheSignature))
	_, err = io.ReadFull(f, start)
	return err == nil && string(start) == cacheSignature
}
