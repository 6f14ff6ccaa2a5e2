package backup

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// walk compares the whole source with the generation before.
func (c *creation) walk() error {
	root := c.options.Root
	if root == "" {
		root = "/"
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", root, err)
	}
	defer unix.Close(fd)
	st, err := statBeneath(fd, "")
	if err != nil {
		return fmt.Errorf("%s: %w", root, err)
	}
	entry := scannedEntry{name: ".", inode: st}
	var old *index.Dirent
	if c.previous.Number != 0 {
		root, err := c.view.Resolve(c.previous.Root, ".")
		if err != nil {
			return err
		}
		old = &root
	}
	d := c.scanner.start(fd, ".", c.selection.only(), old)
	defer d.close()
	return c.directory(fd, d, &entry, ".", old, c.selection, st.dev)
}

// directory compares the directory e, which lies at path and is being scanned
// as d, with what it was. parent is the directory that holds it, or itself for
// the root; device is the one that holds the parent.
func (c *creation) directory(parent int, d *scanned, e *scannedEntry, path string, old *index.Dirent, s *selection, device uint64) error {
	<-d.done
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if len(path) > archive.MaxDirectoryPath {
		return c.unreadable(path, errTooDeep, old, s)
	}
	if err := c.opened(d, e); err != nil {
		return c.unreadable(path, err, old, s)
	}
	c.devices.meet(e.dev, path)
	if in := c.within(e, s, device); in != s { // to open it mounted something there
		s = in
		d.entries = slices.DeleteFunc(d.entries, func(e scannedEntry) bool { return s.children[e.name] == nil })
	}
	if reason := c.leftOut(d, e, device); reason != "" {
		return c.leaveOut(reason, path, old, s)
	}
	if s.all {
		c.matched = true
	}
	if d.fd < 0 && (errors.Is(d.err, unix.ENOENT) || errors.Is(d.err, unix.ENOTDIR) || errors.Is(d.err, unix.ELOOP)) {
		c.problem(path, errVanished)
		return c.drop(path, old)
	}
	err := c.directoryEntry(parent, d, e, path, old)
	if errors.Is(err, archive.ErrEntry) {
		return c.unreadable(path, err, old, s)
	}
	if err != nil {
		return err
	}
	if d.err != nil {
		c.problem(path, fmt.Errorf("cannot be listed: %w", d.err))
		d.entries = nil
	} else {
		c.onFileSystem(d, e.dev != device, path, s)
	}
	d.entries = c.included(d, path, s)
	if err := c.children(d, e, path, s); err != nil {
		return err
	}
	c.sameRights(d, e, path)
	return nil
}

var errTooDeep = fmt.Errorf("lies too deep: its path has more than %d bytes", archive.MaxDirectoryPath)

// opened takes the attributes of the directory that was opened for those of the entry:
// what is read in it belongs to them. Another one may have got the name since the
// directory above was read, or its mode may have become stricter.
func (c *creation) opened(d *scanned, e *scannedEntry) error {
	if d.fd < 0 {
		return nil
	}
	now, err := statBeneath(d.fd, "")
	if err == nil {
		e.inode = now
	}
	return err
}

var errRights = errors.New("got another mode or owner while it was backed up: some of what is in it may be newer than those that are stored")

// sameRights reports a directory whose mode or owner are not those any more that were
// stored before its contents were read.
func (c *creation) sameRights(d *scanned, e *scannedEntry, path string) {
	if d.fd < 0 {
		return
	}
	now, err := statBeneath(d.fd, "")
	if err == nil && (now.Mode != e.Mode || now.UID != e.UID || now.GID != e.GID) {
		err = errRights
	}
	if err != nil {
		c.problem(path, err)
	}
}

// onFileSystem leaves out what is not to be read in a directory because of its file system;
// other says that the directory above is of another one.
func (c *creation) onFileSystem(d *scanned, other bool, path string, s *selection) {
	kind := ""
	if other {
		kind = fileSystem(d.fd)
	}
	switch {
	case kernelFileSystem(kind):
		d.entries = nil
		s.leaves(path, func(leaf string) { c.problem(leaf, errKernelFile) })
		return
	case kind == "autofs":
		d.entries = slices.DeleteFunc(d.entries, func(e scannedEntry) bool { return !e.mounted && s.children[e.name] == nil })
		if s.all {
			c.notef("%s is an automounter's: what is mounted there is backed up, what is not is not, unless its path is given", Printable("/"+path))
		}
	}
	c.missing(d, path, s)
}

var errKernelFile = errors.New("is made up by the kernel when it is read: not backed up")

var errVanished = errors.New("vanished, or was replaced, while it was backed up")

// missing reports the given paths that are not there in a directory of which all
// is selected. Elsewhere the attempt to look at them says so.
func (c *creation) missing(d *scanned, path string, s *selection) {
	if !s.all {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.children)) {
		if !slices.ContainsFunc(d.entries, func(e scannedEntry) bool { return e.name == name }) {
			s.children[name].leaves(join(path, name), func(leaf string) { c.problem(leaf, unix.ENOENT) })
		}
	}
}

// leftOut returns why a directory is not part of any backup, "" if it is.
func (c *creation) leftOut(d *scanned, e *scannedEntry, device uint64) string {
	switch {
	case c.own.is(d.fd, ".", &e.inode):
		return "the repository"
	case e.dev != device && d.fd >= 0 && fileSystem(d.fd) == "fuse.backupfs":
		return "a mount of backups"
	}
	return ""
}

// refusal is a given path that is not part of any backup.
type refusal struct {
	path string
	why  error
}

// leaveOut drops the directory at path, which is the given thing, and notes the
// given paths at and below it.
func (c *creation) leaveOut(what, path string, old *index.Dirent, s *selection) error {
	if s.given {
		c.refused = append(c.refused, refusal{path, fmt.Errorf("is %s itself", what)})
	}
	s.leavesBelow(path, func(leaf string) {
		c.refused = append(c.refused, refusal{leaf, fmt.Errorf("lies in %s", what)})
	})
	if path == "." {
		return nil // nothing is left
	}
	if !s.given && len(s.children) == 0 {
		c.notef("%s is left out: it is %s", Printable("/"+path), what)
	}
	return c.drop(path, old)
}

// directoryEntry adds the entry of a directory where it is new or changed. It is added
// with no extended attributes but ACLs where others cannot be read, or stored: they are
// tried again by the next run.
func (c *creation) directoryEntry(parent int, d *scanned, e *scannedEntry, path string, old *index.Dirent) (err error) {
	same := old != nil && old.Dir != 0 && old.Attr == e.Attr
	if same && c.base != 0 {
		c.count(old, &e.inode, path, true)
		return nil
	}
	attr := lasting(e.Attr)
	xattrs := xattrsBeneath(parent, e.name)
	if d.fd >= 0 {
		xattrs = xattrsBeneath(d.fd, ".")
	}
	entry := archive.Entry{Path: path, Attr: attr}
	if entry.Xattrs, err = xattrs.read(); err == nil {
		c.warnOverlay(path, entry.Xattrs)
		err = c.add(entry)
	}
	var f fatal
	if err != nil && !errors.As(err, &f) {
		bare := archive.Entry{Path: path, Attr: neverSame(e.Attr)}
		known := false
		if bare.Xattrs, known = xattrs.acls(); !known {
			bare.Attr.Mode &^= 0o070 // of a file with an ACL these are its mask, and not what its group may do
		}
		if err := c.add(bare); err != nil {
			return err
		}
		c.problem(path, err)
		err = nil
	}
	if err == nil {
		c.count(old, &e.inode, path, same)
	}
	return err
}

// children compares the entries of a directory with those that it had.
func (c *creation) children(d *scanned, e *scannedEntry, path string, s *selection) error {
	if d.beforeErr != nil {
		return d.beforeErr
	}
	before := d.before
	ahead := lookahead{creation: c, parent: d, selection: s, device: e.dev}
	defer ahead.close()
	for i := range d.entries {
		child := &d.entries[i]
		for len(before) > 0 && before[0].Name < child.name {
			if err := c.drop(join(path, before[0].Name), &before[0]); err != nil {
				return err
			}
			before = before[1:]
		}
		var was *index.Dirent
		if len(before) > 0 && before[0].Name == child.name {
			was, before = &before[0], before[1:]
		}
		if err := c.child(d, &ahead, i, join(path, child.name), was, c.selectionOf(child, s, e.dev), e.dev); err != nil {
			return err
		}
	}
	for i := range before {
		if err := c.drop(join(path, before[i].Name), &before[i]); err != nil {
			return err
		}
	}
	return nil
}

// child compares entry i of a directory, which lies at path.
func (c *creation) child(d *scanned, ahead *lookahead, i int, path string, old *index.Dirent, s *selection, device uint64) error {
	e := &d.entries[i]
	c.options.Progress.path.Store(&path)
	c.options.Progress.files.Add(1)
	if err := c.ctx.Err(); err != nil {
		return err
	}
	switch {
	case e.err != nil:
		return c.unreadable(path, e.err, old, s)
	case e.Type == archive.TypeDir:
		sub := ahead.take(i)
		defer sub.close()
		return c.directory(d.fd, sub, e, path, old, s, device)
	case !s.all || s.dir:
		return c.unreadable(path, unix.ENOTDIR, old, s)
	}
	if e.dev != device {
		c.devices.meet(e.dev, "")
	}
	c.matched = true
	if s.given && e.Type == archive.TypeSymlink {
		c.notef("%s is a symlink: it is stored as such, and not what it leads to (for that, give the path with a / at its end, or the other path)", Printable("/"+path))
	}
	s.leavesBelow(path, func(leaf string) { c.problem(leaf, unix.ENOTDIR) })
	return c.file(d.fd, e, path, old)
}

// unreadable reports an entry that could not be looked at, and the paths given
// by the user below it, and drops it.
func (c *creation) unreadable(path string, err error, old *index.Dirent, s *selection) error {
	if s.all && !s.given {
		c.problem(path, err)
	}
	s.leaves(path, func(leaf string) { c.problem(leaf, err) })
	return c.drop(path, old)
}

// file adds a file of any type but a directory where it is new or changed.
func (c *creation) file(dir int, e *scannedEntry, path string, old *index.Dirent) error {
	if e.Type == archive.TypeFile && e.Size > maxRaw-c.summary.RawBytes {
		c.problem(path, errTooMuch)
		return c.drop(path, old)
	}
	if old != nil {
		if err := c.countGoneBelow(path, old); err != nil {
			return err
		}
	}
	same := old != nil && old.Dir == 0 && old.Attr == e.Attr
	lost := false
	if same && (!c.options.Checksum || e.Type != archive.TypeFile) {
		var err error
		if lost, err = c.isLost(old); err != nil {
			return err
		}
		if !lost {
			return c.unchanged(e, path, old)
		}
	}
	if c.options.DryRun {
		if e.Type == archive.TypeFile {
			c.summary.ReadBytes += e.Size
			c.summary.StoredBytes += e.Size
		}
		c.count(old, &e.inode, path, same)
		return nil
	}
	if lost {
		c.placement.replace(path, nil) // it lives on
	} else {
		c.placement.replace(path, old)
	}
	entry, err := c.read(dir, e, path)
	if err != nil {
		var f fatal
		if errors.As(err, &f) {
			return err
		}
		c.problem(path, err)
		return c.drop(path, old)
	}
	if same {
		if same, err = c.sameContents(old, entry); err != nil {
			return err
		}
		if same {
			return c.unchanged(e, path, old)
		}
	}
	if err := c.add(entry); errors.Is(err, archive.ErrEntry) {
		c.problem(path, err)
		return c.drop(path, old)
	} else if err != nil {
		return err
	}
	if entry.Changed {
		c.problem(path, errChanged)
	}
	c.warnOverlay(path, entry.Xattrs)
	c.count(old, &inode{Attr: entry.Attr}, path, false)
	return nil
}

// maxRaw bounds the sizes of all files of a source, so that those of two generations
// can be added.
const maxRaw = math.MaxInt64 / 2

var errTooMuch = fmt.Errorf("is not stored: with it the files of this backup had more than %d bytes, holes included", int64(maxRaw))

var errChanged = errors.New("changed while it was read: what is stored is one reading of it")

// unchanged takes a file over from the generation before.
func (c *creation) unchanged(e *scannedEntry, path string, old *index.Dirent) error {
	c.count(old, &e.inode, path, true)
	if c.base != 0 || c.options.DryRun {
		return nil
	}
	i, err := c.db.Inode(old.Ino)
	if err != nil {
		return err
	}
	entry := archive.Entry{Path: path, Attr: i.Attr, Target: i.Target, Changed: i.Changed, Group: c.devices.group(&e.inode)}
	if old.Ino.HasXattrs() {
		if entry.Xattrs, err = c.db.Xattrs(old.Ino); err != nil {
			return err
		}
	}
	if entry.Data, err = c.dataBefore(old); err != nil {
		return err
	}
	for _, x := range entry.Data {
		if _, stored := c.stored[x.Hash]; !stored {
			c.relied[x.Hash] = struct{}{}
		}
	}
	return c.add(entry)
}

// isLost reports whether a content of a file that the generation before has lay in a
// part that is missing, and is not stored again yet. Where no part is, and nothing has to
// be said again, it does not look for contents whose part was removed.
func (c *creation) isLost(old *index.Dirent) (bool, error) {
	if len(c.lost) == 0 && c.base != 0 || old.Attr.Type != archive.TypeFile {
		return false, nil
	}
	lost := false
	err := c.db.Extents(old.Ino, 0, old.Attr.Size, func(x index.Extent) bool {
		_, stored := c.stored[x.Hash]
		lost = !stored && c.lost[x.Part.Name]
		return !lost
	})
	if errors.Is(err, index.ErrNotFound) {
		c.notef("what generations need was in a part that was removed: where the source has it, it is stored again")
		return true, nil
	}
	return lost, err
}

func (c *creation) dataBefore(old *index.Dirent) (data []archive.Extent, err error) {
	if old.Attr.Type != archive.TypeFile {
		return nil, nil
	}
	err = c.db.Extents(old.Ino, 0, old.Attr.Size, func(x index.Extent) bool {
		data = append(data, archive.Extent{Offset: x.Offset, Len: x.Len, Hash: x.Hash})
		return true
	})
	return data, err
}

func (c *creation) sameContents(old *index.Dirent, entry archive.Entry) (bool, error) {
	same, left := true, entry.Data
	err := c.db.Extents(old.Ino, 0, old.Attr.Size, func(x index.Extent) bool {
		if same = len(left) > 0 && left[0] == (archive.Extent{Offset: x.Offset, Len: x.Len, Hash: x.Hash}); same {
			left = left[1:]
		}
		return same
	})
	if errors.Is(err, index.ErrNotFound) { // its part was removed
		return false, nil
	}
	return same && len(left) == 0 && !entry.Changed, err
}

// read returns the entry of a file that is new or changed; the contents are
// stored. Another link of an inode that was read already is not read again, if it is
// that as it was: all links may have gone since, and a new file have got its number.
func (c *creation) read(dir int, e *scannedEntry, path string) (archive.Entry, error) {
	if first, ok := c.links[c.devices.group(&e.inode)]; ok && first.Attr == e.Attr {
		first.Path = path
		return first, nil
	}
	entry, err := c.readNew(dir, e, path)
	if err != nil || entry.Group == "" {
		return entry, err
	}
	if first, ok := c.links[entry.Group]; ok && first.Attr == neverSame(first.Attr) {
		c.join(&entry, first)
	}
	c.links[entry.Group] = entry
	return entry, nil
}

var errLinks = errors.New("changed between the reading of two of its names: they are stored as two files, and not as hard links of one")

// join makes an entry a link of the same inode as the first of its group, which has got
// attributes that no file has, if that is all in which they differ.
func (c *creation) join(entry *archive.Entry, first archive.Entry) {
	link := *entry
	link.Attr = neverSame(link.Attr)
	if link.Attr != first.Attr || link.Target != first.Target || link.Changed != first.Changed ||
		!slices.Equal(link.Xattrs, first.Xattrs) || !slices.Equal(link.Data, first.Data) {
		c.problem(link.Path, errLinks)
		return
	}
	*entry = link
}

func (c *creation) readNew(dir int, e *scannedEntry, path string) (archive.Entry, error) {
	if e.Type == archive.TypeFile {
		return c.readFile(dir, e.name, path)
	}
	entry := archive.Entry{Path: path, Attr: lasting(e.Attr), Group: c.devices.group(&e.inode)}
	var err error
	if e.Type == archive.TypeSymlink {
		if entry.Target, err = readLink(dir, e.name, e.Size); err != nil {
			return archive.Entry{}, err
		}
		entry.Attr.Size = int64(len(entry.Target))
	}
	entry.Xattrs, err = xattrsBeneath(dir, e.name).read()
	return entry, err
}

// drop removes from the generation whatever was at path. No generation is without its root.
func (c *creation) drop(path string, old *index.Dirent) error {
	if path == "." {
		return fatal{fmt.Errorf("%s: the directory that all paths are below cannot be stored: why is said above", c.shown(path))}
	}
	if old == nil {
		return nil
	}
	if err := c.countGone(path, old); err != nil {
		return err
	}
	if c.base == 0 || c.options.DryRun {
		return nil
	}
	return c.draft.Add(archive.Line{Gone: path})
}

// countGone counts a path that is gone, and all that was below it.
func (c *creation) countGone(path string, old *index.Dirent) error {
	c.summary.Gone++
	c.change(Removed, path)
	return c.countGoneBelow(path, old)
}

func (c *creation) countGoneBelow(path string, old *index.Dirent) error {
	list, err := listBefore(c.view, old)
	for i := 0; i < len(list) && err == nil; i++ {
		err = c.countGone(join(path, list[i].Name), &list[i])
	}
	return err
}

func (c *creation) add(entry archive.Entry) error {
	if c.options.DryRun {
		return nil
	}
	return c.draft.Add(archive.Line{Entry: &entry})
}

// count adds an entry of the new generation to the summary.
func (c *creation) count(old *index.Dirent, i *inode, path string, same bool) {
	if i.Type == archive.TypeDir {
		c.summary.Dirs++
	} else {
		c.summary.Files++
	}
	if i.Type == archive.TypeFile {
		c.summary.RawBytes += i.Size
	}
	switch {
	case old == nil:
		c.summary.New++
		c.change(Added, path)
	case same:
		c.summary.Unchanged++
	default:
		c.summary.Changed++
		c.change(Changed, path)
	}
}

// warnOverlay says where a file of an overlay's upper directory has its data,
// or its children, somewhere else: they are not in the backup.
func (c *creation) warnOverlay(path string, xattrs []archive.Xattr) {
	for _, x := range xattrs {
		switch x.Name {
		case "trusted.overlay.metacopy", "user.overlay.metacopy":
			c.notef("%s: its data lies in a lower layer of the overlay (metacopy): stored as it is here, without data", Printable("/"+path))
		case "trusted.overlay.redirect", "user.overlay.redirect":
			c.notef("%s: it continues another path of a lower layer (redirect to %s): stored as it is here", Printable("/"+path), Printable(x.Value))
		}
	}
}

// lookahead keeps the scans of the next subdirectories of a directory running.
type lookahead struct {
	creation  *creation
	parent    *scanned
	selection *selection
	device    uint64 // that holds the parent
	next      int    // first entry not looked at
	running   []runningScan
}

type runningScan struct {
	entry int
	*scanned
}

// take returns the scan of entry i, a directory, which the caller must close.
// Entries are taken in their order.
func (l *lookahead) take(i int) *scanned {
	for ; l.next < len(l.parent.entries) && (l.next <= i || len(l.running) < scanAhead); l.next++ {
		e := &l.parent.entries[l.next]
		if e.err == nil && e.Type == archive.TypeDir {
			only := l.creation.selectionOf(e, l.selection, l.device).only()
			l.running = append(l.running, runningScan{l.next, l.creation.scanner.start(l.parent.fd, e.name, only, l.parent.was(e.name))})
		}
	}
	first := l.running[0]
	l.running = l.running[1:]
	return first.scanned
}

// close ends the scans that were not taken.
func (l *lookahead) close() {
	for _, s := range l.running {
		s.close()
	}
}
