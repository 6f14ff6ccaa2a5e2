// Package crash is a model of a disk that crashes. A Disk does what it is told to
// real files, and writes down every operation. From that it makes States: what may be
// on disk after a crash at any point, given that nothing but what was synced is sure
// to be there. It is for tests only.
//
// What is taken for granted is what POSIX says and every journalling file system
// does, and no more:
//
//   - File.Sync keeps the bytes of the file and its size, but none of its names.
//   - SyncDir keeps the entries of that directory; not its own entry in the directory
//     above, and no bytes of files.
//   - A rename is never seen half done: a file has its old name, or the new one, or
//     both, and what it replaces is there until then. A directory has one of the two.
//
// All else is independent of each other and of the order in which it was done: any
// name may be there, may be there still, or not, and of a file's bytes any write may
// have happened, a part of it, or zeros be in its place. Modes are not modelled.
package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/internal/disk"
)

// ErrKilled is the error of every operation behind Disk.Kill.
var ErrKilled = errors.New("killed")

// Options are what the file system of a Disk cannot do. The zero value can do all.
type Options struct {
	NoLinks    bool // Link fails with EPERM
	NoRenaming bool // RenameNew and Exchange fail with EINVAL
}

// Disk is a file system below one directory. What it is told about files elsewhere it
// does, and does not write down. It is safe for concurrent use.
type Disk struct {
	disk.OS
	options Options
	root    string

	mu      sync.Mutex
	limit   int     // operations that happen; -1: all
	renames int     // renames that happen before nothing else does; -1: all
	killed  bool    // an operation failed because of these
	full    bool    // there is no room for directories
	nodes   []*node // by number; the first is the top directory
	log     []operation
}

// node is a file or a directory as it is now.
type node struct {
	id      int
	perm    fs.FileMode
	entries map[string]*node // nil for a file
}

type kind uint8

const (
	addEntry    kind = iota // dir, name: node
	removeEntry             // dir, name
	moveEntry               // dir, name: node goes to toDir, toName
	swapEntries             // dir, name: node; toDir, toName: other
	writeBytes              // node, at, data
	setSize                 // node, at
	syncFile                // node, site
	syncDir                 // dir, site
)

// operation is one thing that was done. Nodes are named by their numbers.
type operation struct {
	kind         kind
	dir, toDir   int
	name, toName string
	node, other  int
	at           int64
	data         []byte
	site         string
}

// New returns a Disk over an empty directory.
func New(root string, o Options) *Disk {
	d := &Disk{options: o, root: root, limit: -1, renames: -1}
	d.newNode(0o700, map[string]*node{})
	return d
}

// Fork returns a Disk over another empty directory with the same files and the same
// past. The operations to come are those of each alone.
func (d *Disk) Fork(root string) (*Disk, error) {
	if err := d.Crash(d.Len(), Everything, "").Write(root); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fork := &Disk{options: d.options, root: root, limit: -1, renames: -1, log: slices.Clip(d.log)}
	for _, n := range d.nodes {
		fork.nodes = append(fork.nodes, &node{id: n.id, perm: n.perm})
	}
	for i, n := range d.nodes {
		if n.entries == nil {
			continue
		}
		fork.nodes[i].entries = map[string]*node{}
		for name, child := range n.entries {
			fork.nodes[i].entries[name] = fork.nodes[child.id]
		}
	}
	return fork, nil
}

// Len returns the number of operations that were done.
func (d *Disk) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

// Kill lets only so many further operations happen; each fails with ErrKilled then, as
// if the process were dead.
func (d *Disk) Kill(operations int) {
	d.mu.Lock()
	d.limit = len(d.log) + operations
	d.mu.Unlock()
}

// KillAtRename is Kill behind the n-th further rename.
func (d *Disk) KillAtRename(n int) {
	d.mu.Lock()
	d.renames = n
	d.mu.Unlock()
}

// Fill fills the disk: no directory can be made any more.
func (d *Disk) Fill() {
	d.mu.Lock()
	d.full = true
	d.mu.Unlock()
}

// Revive ends what Kill or KillAtRename began, and reports whether any operation failed
// because of it.
func (d *Disk) Revive() (killed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	killed = d.killed
	d.limit, d.renames, d.killed = -1, -1, false
	return killed
}

// Syncs returns where the program calls for syncs, and the number of the first such
// operation. A place is a list of file:line: the call, who called that function, and so
// on. Syncs that a test itself calls for have none.
func (d *Disk) Syncs() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	sites := map[string]int{}
	for i, o := range d.log {
		if _, known := sites[o.site]; o.site != "" && !known {
			sites[o.site] = i
		}
	}
	return sites
}

// Compare fails if the real files are others than those that the operations made:
// somebody has gone past the Disk.
func (d *Disk) Compare() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return compare(d.root, d.nodes[0])
}

func compare(name string, n *node) error {
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	var there []string
	for _, e := range entries {
		there = append(there, e.Name())
	}
	if want := slices.Sorted(maps.Keys(n.entries)); !slices.Equal(there, want) {
		return fmt.Errorf("%s has the entries %q, made were %q", name, there, want)
	}
	for base, child := range n.entries {
		if child.entries != nil {
			if err := compare(filepath.Join(name, base), child); err != nil {
				return err
			}
		}
	}
	return nil
}

// place is a name in a directory of the Disk; what may have the name.
type place struct {
	dir  *node
	base string
	node *node
}

// find looks a path up. It is false for what lies outside of the Disk.
func (d *Disk) find(name string) (place, bool) {
	rel, err := filepath.Rel(d.root, name)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return place{}, false
	}
	dir := d.nodes[0]
	parent, base := filepath.Split(rel)
	for component := range strings.SplitSeq(strings.TrimSuffix(parent, "/"), "/") {
		if component == "" {
			continue
		}
		if dir = dir.entries[component]; dir == nil {
			return place{}, false
		}
	}
	return place{dir, base, dir.entries[base]}, true
}

// do does something to the real files, and, if that works out, writes it down.
func (d *Disk) do(real func() error, done func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.doLocked(real, done)
}

func (d *Disk) doLocked(real func() error, done func()) error {
	if d.limit >= 0 && len(d.log) >= d.limit || d.renames == 0 {
		d.killed = true
		return ErrKilled
	}
	if err := real(); err != nil {
		return err
	}
	done()
	return nil
}

func (d *Disk) add(p place, n *node) {
	p.dir.entries[p.base] = n
	d.log = append(d.log, operation{kind: addEntry, dir: p.dir.id, name: p.base, node: n.id})
}

func (d *Disk) newNode(perm fs.FileMode, entries map[string]*node) *node {
	n := &node{id: len(d.nodes), perm: perm, entries: entries}
	d.nodes = append(d.nodes, n)
	return n
}

// OpenFile implements disk.FS.
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (f disk.File, err error) {
	err = d.do(func() (err error) {
		f, err = d.OS.OpenFile(name, flag, perm)
		return err
	}, func() {
		p, inside := d.find(name)
		if !inside {
			return
		}
		if p.node == nil {
			p.node = d.newNode(perm, nil)
			d.add(p, p.node)
		} else if flag&os.O_TRUNC != 0 {
			d.log = append(d.log, operation{kind: setSize, node: p.node.id})
		}
		f = &file{File: f, disk: d, node: p.node}
	})
	return f, err
}

// Mkdir implements disk.FS.
func (d *Disk) Mkdir(name string, perm fs.FileMode) error {
	return d.do(func() error {
		if d.full {
			return unix.ENOSPC
		}
		return d.OS.Mkdir(name, perm)
	}, func() {
		if p, inside := d.find(name); inside {
			d.add(p, d.newNode(perm, map[string]*node{}))
		}
	})
}

// Link implements disk.FS.
func (d *Disk) Link(from, to string) error {
	if d.options.NoLinks {
		return unix.EPERM
	}
	return d.do(func() error { return d.OS.Link(from, to) }, func() {
		source, inside := d.find(from)
		target, _ := d.find(to)
		if inside {
			d.add(target, source.node)
		}
	})
}

// Rename implements disk.FS.
func (d *Disk) Rename(from, to string) error {
	return d.do(func() error { return d.OS.Rename(from, to) }, func() { d.moved(from, to) })
}

// RenameNew implements disk.FS.
func (d *Disk) RenameNew(from, to string) error {
	if d.options.NoRenaming {
		return unix.EINVAL
	}
	return d.do(func() error { return d.OS.RenameNew(from, to) }, func() { d.moved(from, to) })
}

func (d *Disk) moved(from, to string) {
	source, inside := d.find(from)
	target, _ := d.find(to)
	if !inside {
		return
	}
	delete(source.dir.entries, source.base)
	target.dir.entries[target.base] = source.node
	d.countRename()
	d.log = append(d.log, operation{kind: moveEntry, dir: source.dir.id, name: source.base,
		toDir: target.dir.id, toName: target.base, node: source.node.id})
}

func (d *Disk) countRename() {
	if d.renames > 0 {
		d.renames--
	}
}

// Exchange implements disk.FS.
func (d *Disk) Exchange(a, b string) error {
	if d.options.NoRenaming {
		return unix.EINVAL
	}
	return d.do(func() error { return d.OS.Exchange(a, b) }, func() {
		first, inside := d.find(a)
		second, _ := d.find(b)
		if !inside {
			return
		}
		d.countRename()
		first.dir.entries[first.base], second.dir.entries[second.base] = second.node, first.node
		d.log = append(d.log, operation{kind: swapEntries, dir: first.dir.id, name: first.base, node: first.node.id,
			toDir: second.dir.id, toName: second.base, other: second.node.id})
	})
}

// Remove implements disk.FS.
func (d *Disk) Remove(name string) error {
	return d.do(func() error { return d.OS.Remove(name) }, func() { d.removed(name) })
}

func (d *Disk) removed(name string) {
	if p, inside := d.find(name); inside {
		delete(p.dir.entries, p.base)
		d.log = append(d.log, operation{kind: removeEntry, dir: p.dir.id, name: p.base, node: p.node.id})
	}
}

// RemoveAll implements disk.FS.
func (d *Disk) RemoveAll(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p, inside := d.find(name); inside && p.node != nil {
		return d.removeTree(name, p.node)
	}
	return d.OS.RemoveAll(name)
}

func (d *Disk) removeTree(name string, n *node) error {
	for _, base := range slices.Sorted(maps.Keys(n.entries)) {
		if err := d.removeTree(filepath.Join(name, base), n.entries[base]); err != nil {
			return err
		}
	}
	return d.doLocked(func() error { return os.Remove(name) }, func() { d.removed(name) })
}

// SyncDir implements disk.FS.
func (d *Disk) SyncDir(name string) error {
	site := callers()
	return d.do(func() error { return d.OS.SyncDir(name) }, func() {
		if name == d.root {
			d.log = append(d.log, operation{kind: syncDir, site: site})
		} else if p, inside := d.find(name); inside {
			d.log = append(d.log, operation{kind: syncDir, dir: p.node.id, site: site})
		}
	})
}

// file is a file of a Disk that is open for writing.
type file struct {
	disk.File
	disk *Disk
	node *node
}

func (f *file) Write(b []byte) (n int, err error) {
	var at int64
	err = f.disk.do(func() (err error) {
		if at, err = f.Seek(0, 1); err == nil {
			n, err = f.File.Write(b)
		}
		return err
	}, func() {
		f.disk.log = append(f.disk.log, operation{kind: writeBytes, node: f.node.id, at: at, data: slices.Clone(b)})
	})
	return n, err
}

func (f *file) Sync() error {
	site := callers()
	return f.disk.do(f.File.Sync, func() {
		f.disk.log = append(f.disk.log, operation{kind: syncFile, node: f.node.id, site: site})
	})
}

// callers returns who called the method that calls it, and who called that, and so on:
// files, with the directory that they lie in, and lines. Tests are left out, and how a
// function calls itself.
func callers() string {
	var list []string
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var f runtime.Frame
	for last, more := "", true; more; last = f.Function {
		f, more = frames.Next()
		if f.Function == last || !strings.Contains(f.Function, "/backupfs/") || strings.HasSuffix(f.File, "_test.go") {
			continue
		}
		dir, base := filepath.Split(f.File)
		list = append(list, fmt.Sprintf("%s/%s:%d", filepath.Base(dir), base, f.Line))
	}
	return strings.Join(list, " ")
}
