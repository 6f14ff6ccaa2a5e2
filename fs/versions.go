package fs

import (
	"errors"
	"syscall"

	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Where generations are listed there is, unlisted, a directory ".versions". In
// it, ".versions/etc/passwd" is a directory that lists the versions of
// /etc/passwd, each by the name of the first generation that has it, as the very
// file (or directory) of that generation. ".versions/etc" lists the versions of
// /etc; other names in it, unlisted, lead to what any generation has in /etc. A
// version's name hides a file of that name.
const versionsName = ".versions"

const accessACL = "system.posix_acl_access"

// history is a directory below ".versions". Its snapshot is to be released.
type history struct {
	*snapshot
	*pathNode
	listing  *listing
	line     index.Timeline
	versions []index.Version // at least one
}

// history returns the directory below ".versions" that a node is.
func (s *server) history(node uint64) (history, fuse.Status) {
	p := s.m.paths.get(node)
	if p == nil {
		return history{}, errStale // it comes back when its path is looked up again
	}
	snap := s.snapshots.at(0)
	if snap == nil {
		return history{}, errStale
	}
	h, status := s.historyIn(snap, p)
	if !status.Ok() {
		snap.release()
	}
	return h, status
}

func (s *server) historyIn(snap *snapshot, p *pathNode) (history, fuse.Status) {
	shown := s.catalog.Load()
	if shown.last > snap.db.Number() { // of a snapshot that comes this very moment
		shown = snap.catalog
	}
	l := shown.listing(p.listing)
	if l == nil {
		return history{}, errStale
	}
	h := history{snapshot: snap, pathNode: p, listing: l, line: snap.db.Timeline(l.generations)}
	status := s.findVersions(&h, p.path())
	if status.Ok() && len(h.versions) == 0 { // what had it was dropped
		return history{}, errStale
	}
	return h, status
}

// findVersions sets the versions of h to those of a path.
func (s *server) findVersions(h *history, path string) fuse.Status {
	found := s.m.found.Load()
	if found == nil || found.number != h.db.Number() || found.listing != h.listing || found.path != path {
		versions, err := h.line.Versions(path)
		if err != nil {
			return s.failVersions("lookup", path, err)
		}
		found = &foundVersions{h.db.Number(), h.listing, path, versions}
		s.m.found.Store(found)
	}
	h.versions = found.versions
	return fuse.OK
}

// foundVersions are the versions that were asked for last. Whoever looks a path up asks
// for more of it, a listing of many takes many requests, and each needs all of them. They
// never change.
type foundVersions struct {
	number   uint64 // of the snapshot's last record
	listing  *listing
	path     string
	versions []index.Version
}

func (s *server) failVersions(op, path string, err error) fuse.Status {
	s.countFailure(err)
	s.m.log.once("%s of %s/%q failed: %v", op, versionsName, path, err)
	return fuse.EIO
}

// lookupVersions answers for the name ".versions" in a listing.
func (s *server) lookupVersions(l *listing, out *fuse.EntryOut) fuse.Status {
	if len(l.generations) == 0 {
		return fuse.ENOENT
	}
	p, err := s.m.paths.root(l.node)
	if err != nil {
		return s.failVersions("lookup", ".", err)
	}
	h, status := s.history(p.node)
	if !status.Ok() {
		return status
	}
	defer h.release()
	return s.setHistoryEntry(out, h)
}

// lookupHistory answers for a name in a directory below ".versions". The kernel
// keeps nothing of it for long: versions come and go with generations.
func (s *server) lookupHistory(node uint64, name string, out *fuse.EntryOut) fuse.Status {
	h, status := s.history(node)
	if !status.Ok() {
		return status
	}
	defer h.release()
	for _, v := range h.versions {
		if v.First.Name == name {
			setVersionEntry(out, h, v)
			return fuse.OK
		}
	}
	child := join(h.path(), name)
	if status := s.findVersions(&h, child); !status.Ok() {
		return status
	}
	if len(h.versions) == 0 {
		return fuse.ENOENT
	}
	p, err := s.m.paths.child(h.pathNode, name)
	if err != nil {
		return s.failVersions("lookup", child, err)
	}
	h.pathNode = p
	return s.setHistoryEntry(out, h)
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func (s *server) setHistoryEntry(out *fuse.EntryOut, h history) fuse.Status {
	out.NodeId = h.node
	out.Generation = 1
	out.SetEntryTimeout(briefly)
	out.SetAttrTimeout(briefly)
	return s.setHistoryAttr(&out.Attr, h)
}

// first returns the generation that had a version first, as the place of its entry.
func (h history) first(v index.Version) directory {
	return directory{snapshot: h.snapshot, generation: v.First.Number, via: viaVersion(h.depth())}
}

// setVersionEntry fills in a version.
func setVersionEntry(out *fuse.EntryOut, h history, v index.Version) {
	setEntry(out, h.first(v), v.Dirent)
	out.SetEntryTimeout(briefly)
}

func (s *server) historyAttr(node uint64, out *fuse.Attr) fuse.Status {
	h, status := s.history(node)
	if !status.Ok() {
		return status
	}
	defer h.release()
	return s.setHistoryAttr(out, h)
}

// setHistoryAttr fills in the attributes of a directory below ".versions". Its
// time is that of the listing, so that the kernel drops its copy of the entries
// when that one changes.
func (s *server) setHistoryAttr(out *fuse.Attr, h history) fuse.Status {
	g, err := s.guard(h)
	if err != nil {
		return s.failVersions("getattr", h.path(), err)
	}
	*out = fuse.Attr{
		Ino:     h.node,
		Mode:    syscall.S_IFDIR | g.mode,
		Nlink:   1, // nobody counts
		Owner:   g.owner,
		Blksize: blockSize,
	}
	setTimes(out, h.listing.mtime)
	return fuse.OK
}

// guard says who may enter and list a directory below ".versions".
type guard struct {
	owner fuse.Owner
	mode  uint32
	acl   string // "" where there is none
}

// guard returns the rights to a directory below ".versions": those that hold in
// every generation where its path is a directory, so that nobody gets around
// what was closed to him at any time. Where owners or ACLs differ, only who passes
// over all rights may enter, as root usually does. Rights to write stay: they gain nobody anything, but an ACL whose mask
// leaves no other right counts for nothing in Linux where the mask is empty.
func (s *server) guard(h history) (guard, error) {
	all := guard{owner: s.m.owner, mode: 0o555}
	first := true
	for _, v := range h.versions {
		if v.Dir == 0 {
			continue
		}
		acl, err := h.db.Xattr(v.Ino, accessACL)
		if err != nil && !errors.Is(err, index.ErrNotFound) {
			return guard{}, err
		}
		g := guard{owner: fuse.Owner{Uid: v.Attr.UID, Gid: v.Attr.GID}, mode: v.Attr.Mode & 0o777, acl: acl}
		switch {
		case first:
			all, first = g, false
		case g.owner != all.owner || g.acl != all.acl || g.acl != "" && g.mode != all.mode:
			return guard{owner: s.m.owner}, nil
		default:
			all.mode &= g.mode
		}
	}
	return all, nil
}

// historyXattr returns the ACL of a directory below ".versions", its only
// extended attribute.
func (s *server) historyXattr(node uint64, name string) (string, fuse.Status) {
	if name != accessACL {
		return "", errNoAttr
	}
	h, status := s.history(node)
	if !status.Ok() {
		return "", status
	}
	defer h.release()
	g, err := s.guard(h)
	switch {
	case err != nil:
		return "", s.failVersions("getxattr", h.path(), err)
	case g.acl == "":
		return "", errNoAttr
	}
	return g.acl, fuse.OK
}

// readHistory lists versions, at the offsets that their generations have in a
// listing.
func (s *server) readHistory(node, offset uint64, out entryList) fuse.Status {
	h, status := s.history(node)
	if !status.Ok() {
		return status
	}
	defer h.release()
	if !addDots(node, offset, out) {
		return fuse.OK
	}
	for _, v := range h.versions {
		e := fuse.DirEntry{Name: v.First.Name, Mode: typeMode(v.Attr.Type), Ino: h.first(v).node(v.Dirent),
			Off: offsetGenerations + v.First.Number}
		set := func(out *fuse.EntryOut) fuse.Status {
			setVersionEntry(out, h, v)
			return fuse.OK
		}
		if e.Off > offset && !out.add(e, set) {
			return fuse.OK
		}
	}
	return fuse.OK
}
