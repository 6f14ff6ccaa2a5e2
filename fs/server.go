package fs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	errStale  = fuse.Status(syscall.ESTALE) // its generation was dropped
	errNoAttr = fuse.Status(syscall.ENODATA)
	errNoData = fuse.Status(syscall.ENXIO) // of lseek
)

// aclPrefix begins the names of ACLs. Who asks for one is never answered with
// ENOSYS: the kernel would take that, the first time, for a failed check of
// permissions.
const aclPrefix = "system.posix_acl_"

// maxName is how many bytes a name may have.
const maxName = 255

// server answers the kernel in one connection. What it does not define is
// refused by readOnly.
type server struct {
	readOnly
	*lineage
	m         *Mount
	fuse      *fuse.Server
	pusher    *pusher
	sequences sequences
	// mute says that requests for extended attributes are answered with ENOSYS.
	// The kernel makes no more of them then, in all of the connection's life.
	mute     bool
	outdated atomic.Bool // there may be attributes all the same, or the log has another history: shows nothing newer
	device   uint64      // of its files
	catalog  atomic.Pointer[catalog]
	before   atomic.Pointer[replaced] // what was shown before; nil at first
	telling  sync.Mutex               // held while the kernel is told of changes
	told     *catalog                 // what the kernel knows of; guarded by telling
	ended    chan struct{}            // closed when the kernel has let go
}

// String is the name that go-fuse gives the file system where it needs one.
func (s *server) String() string { return "backupfs" }

// directory is a directory of a generation, with the snapshot that answers for it.
type directory struct {
	*snapshot
	generation uint64
	dir        index.DirID
	via        uint64 // what its node has in viaMask
}

func (d directory) view() index.View { return d.db.At(d.generation) }

// node returns the node id of an entry.
func (d directory) node(e index.Dirent) uint64 {
	if e.Dir == 0 {
		return uint64(e.Ino)
	}
	return dirNode(d.generation, e.Dir) | d.via
}

// directory returns the directory of a generation that a node is. Its snapshot is
// to be released, unless the status tells why there is none.
func (s *server) directory(node uint64) (directory, fuse.Status) {
	generation, dir, ok := splitDirNode(node)
	if node == rootNode && s.m.pinned.Number != 0 {
		generation, dir, ok = s.m.pinned.Number, s.m.pinned.Root, true
	}
	if !ok {
		return directory{}, fuse.ENOTDIR
	}
	if generation > s.catalog.Load().last {
		return directory{}, errStale // it is for the connection that replaces this one
	}
	snap := s.snapshots.of(generation)
	if snap == nil {
		return directory{}, errStale
	}
	return directory{snap, generation, dir, node & viaMask}, fuse.OK
}

// listing returns the directory above the generations that a node is, nil where
// it is none.
func (s *server) listing(node uint64) *listing {
	if node == rootNode && s.m.pinned.Number != 0 {
		return nil
	}
	return s.catalog.Load().listing(node)
}

// isListing reports whether a node is, or was, a directory above the
// generations.
func (s *server) isListing(node uint64) bool {
	if node == rootNode {
		return s.m.pinned.Number == 0
	}
	return node&(dirFlag|synthFlag|linkFlag|pathFlag) == synthFlag
}

// withInode calls f with the newest index that knows the inode. f returns an
// error that wraps index.ErrNotFound where it does not.
func (s *server) withInode(f func(db *index.DB) error) error {
	err := index.ErrNotFound
	for k := 0; errors.Is(err, index.ErrNotFound); k++ {
		snap := s.snapshots.at(k)
		if snap == nil {
			return err
		}
		err = f(snap.db)
		snap.release()
	}
	return err
}

// fail logs an error and returns what the kernel is told.
func (s *server) fail(op string, node uint64, err error) fuse.Status {
	s.countFailure(err)
	names := fmt.Sprintf("find %s -inum %d: its names", s.m.mountpoint, node)
	if s.lineage != s.m.lineage.Load() { // the numbers in the mount are others
		names = "in the mount as it was before it was replaced"
	}
	s.m.log.once("%s of inode %d failed: %v (%s)", op, node, err, names)
	return fuse.EIO
}

// failDir is fail where err may be that there is no such directory: a file handle of it is
// of another history of the log.
func (s *server) failDir(op string, node uint64, err error) fuse.Status {
	if errors.Is(err, index.ErrNotFound) {
		return errStale
	}
	return s.fail(op, node, err)
}

// countFailure counts an error that is answered with EIO. An index that is damaged is
// opened anew.
func (s *server) countFailure(err error) {
	s.m.counters.failures.Add(1)
	if errors.Is(err, index.ErrDamaged) {
		s.m.refreshes.damaged.Store(true)
	}
}

// Lookup implements fuse.RawFileSystem.
func (s *server) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	s.m.latency.request()
	if isDot(name) {
		return s.lookupDot(h.NodeId, name, out)
	}
	if s.isListing(h.NodeId) {
		return s.lookupListed(h.NodeId, name, out)
	}
	if isPathNode(h.NodeId) {
		return s.lookupHistory(h.NodeId, name, out)
	}
	d, status := s.directory(h.NodeId)
	if !status.Ok() {
		return status
	}
	defer d.release()
	if len(name) > maxName {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	entry, err := d.view().Lookup(d.dir, name)
	switch {
	case errors.Is(err, index.ErrNotFound):
		out.SetEntryTimeout(forever) // node 0: there is none, and never will be
		return fuse.OK
	case err != nil:
		return s.fail("lookup in a directory", h.NodeId, err)
	}
	setEntry(out, d, entry)
	return fuse.OK
}

// lookupListed answers for names above the generations. The kernel is not to
// keep that there is none.
func (s *server) lookupListed(node uint64, name string, out *fuse.EntryOut) fuse.Status {
	l := s.listing(node)
	if l == nil {
		return errStale
	}
	if name == versionsName {
		return s.lookupVersions(l, out)
	}
	if e, ok := l.lookup(name); ok {
		return s.setListedEntry(out, e)
	}
	e, ok := s.justDropped(node, name)
	if !ok {
		return fuse.ENOENT
	}
	status := s.setListedEntry(out, e)
	out.SetEntryTimeout(0)
	return status
}

func (s *server) setListedEntry(out *fuse.EntryOut, e listed) fuse.Status {
	out.SetEntryTimeout(briefly)
	return s.setNodeEntry(out, e.node)
}

// setEntry fills in an entry of a directory of a generation.
func setEntry(out *fuse.EntryOut, d directory, e index.Dirent) {
	out.Generation = 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	out.NodeId = d.node(e)
	setAttr(&out.Attr, out.NodeId, e.Attr, e.DataBytes)
}

// GetAttr implements fuse.RawFileSystem.
func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.m.latency.request()
	valid, status := s.attr(in.NodeId, &out.Attr)
	out.SetTimeout(valid)
	return status
}

// attr fills in the attributes of any node and returns how long they are valid.
func (s *server) attr(node uint64, out *fuse.Attr) (time.Duration, fuse.Status) {
	if ino, ok := fileInode(node); ok {
		return forever, s.fileAttr(node, ino, out)
	}
	if generation, ok := splitLinkNode(node); ok {
		return forever, s.linkAttr(node, generation, out)
	}
	if isPathNode(node) {
		return briefly, s.historyAttr(node, out)
	}
	if !s.isListing(node) {
		return forever, s.dirAttr(node, out)
	}
	l := s.listing(node)
	if l == nil {
		return 0, errStale
	}
	setListingAttr(out, l, s.m.owner)
	return briefly, fuse.OK
}

func (s *server) fileAttr(node uint64, ino index.Ino, out *fuse.Attr) fuse.Status {
	inode, err := s.inode(ino)
	switch {
	case errors.Is(err, index.ErrNotFound):
		return errStale
	case err != nil:
		return s.fail("getattr", node, err)
	}
	setAttr(out, node, inode.Attr, inode.DataBytes)
	return fuse.OK
}

func (s *server) inode(ino index.Ino) (inode index.Inode, err error) {
	err = s.withInode(func(db *index.DB) (err error) {
		inode, err = db.Inode(ino)
		return err
	})
	return inode, err
}

func (s *server) dirAttr(node uint64, out *fuse.Attr) fuse.Status {
	d, status := s.directory(node)
	if !status.Ok() {
		return status
	}
	defer d.release()
	dir, err := d.view().Dir(d.dir)
	if err != nil {
		return s.failDir("getattr", node, err)
	}
	setAttr(out, node, dir.Attr, 0)
	return fuse.OK
}

func (s *server) linkAttr(node, generation uint64, out *fuse.Attr) fuse.Status {
	g, ok := s.generation(generation)
	if !ok {
		return errStale
	}
	setLinkAttr(out, node, g.Name, archive.Timespec{Sec: g.Time.Unix()}, s.m.owner)
	return fuse.OK
}

func (s *server) generation(number uint64) (index.Generation, bool) {
	snap := s.snapshots.of(number)
	if snap == nil {
		return index.Generation{}, false
	}
	defer snap.release()
	return snap.generations[number], true
}

// Readlink implements fuse.RawFileSystem.
func (s *server) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if generation, ok := splitLinkNode(h.NodeId); ok {
		g, ok := s.generation(generation)
		if !ok {
			return nil, errStale
		}
		return []byte(g.Name), fuse.OK
	}
	ino, ok := fileInode(h.NodeId)
	if !ok {
		return nil, fuse.EINVAL
	}
	inode, err := s.inode(ino)
	switch {
	case errors.Is(err, index.ErrNotFound):
		return nil, errStale
	case err != nil:
		return nil, s.fail("readlink", h.NodeId, err)
	}
	return []byte(inode.Target), fuse.OK
}

// Read implements fuse.RawFileSystem. Less than what was asked for is returned
// at the end of the file only: the kernel takes the rest for zeros.
func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	s.m.latency.request()
	ino, ok := fileInode(in.NodeId)
	if !ok {
		return nil, fuse.EISDIR
	}
	r := s.m.parts.passage()
	seen := s.m.refreshes.shows.Load()
	err := s.readAt(r, ino, b, int64(in.Offset))
	for err != nil && s.m.refresh(seen, errors.Is(err, fs.ErrNotExist)) {
		// What the file's contents lay in was compacted away a moment ago, or a
		// damaged index was opened anew.
		seen = s.m.refreshes.shows.Load()
		err = s.readAt(r, ino, b, int64(in.Offset))
	}
	if err != nil {
		r.Done()
	}
	switch {
	case errors.Is(err, index.ErrNotFound):
		return nil, errStale
	case err != nil:
		return nil, s.failRead(in.NodeId, err)
	case r.lost != nil:
		s.m.log.once("%v: read from another part, which has the same content", r.lost)
	}
	s.m.counters.reads.Add(1)
	s.m.counters.readRaw.Add(int64(r.Size()))
	if in.Offset == 0 {
		s.pusher.read(ino)
	}
	return r, fuse.OK
}

// failRead is fail for a READ. Damage is logged once for a file, wherever in it
// the kernel tries to read.
func (s *server) failRead(node uint64, err error) fuse.Status {
	if damage := (*archive.DamageError)(nil); errors.As(err, &damage) {
		err = damage
	}
	return s.fail("read", node, err)
}

// readAt fills b from a file, or as much of it as there is before its end. An old index
// may be the only one to know the file, but where its bytes lie now, or that they lie
// nowhere any more, the newest one knows.
func (s *server) readAt(r *passage, ino index.Ino, b []byte, offset int64) error {
	newest := s.snapshots.at(0)
	if newest == nil {
		return index.ErrNotFound
	}
	defer newest.release()
	r.lost = nil
	err := s.withInode(func(db *index.DB) error {
		n, err := db.ReadPlaced(r, newest.db, ino, b, offset)
		r.data = b[:n]
		return err
	})
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil && len(b) >= sequentialRead && s.sequences.goesOn(ino, offset, int64(len(b))) {
		r.ahead()
	}
	return err
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE.
func (s *server) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	ino, ok := fileInode(in.NodeId)
	if !ok || in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	var found int64
	err := s.withInode(func(db *index.DB) (err error) {
		if in.Whence == unix.SEEK_DATA {
			found, err = db.NextData(ino, int64(in.Offset))
		} else {
			found, err = db.NextHole(ino, int64(in.Offset))
		}
		return err
	})
	switch {
	case errors.Is(err, io.EOF):
		return errNoData
	case errors.Is(err, index.ErrNotFound):
		return errStale
	case err != nil:
		return s.fail("lseek", in.NodeId, err)
	}
	out.Offset = uint64(found)
	return fuse.OK
}

// Forget implements fuse.RawFileSystem.
func (s *server) Forget(node, _ uint64) {
	if ino, ok := fileInode(node); ok {
		s.pusher.forget(ino)
	}
}

// StatFs implements fuse.RawFileSystem: as the size the raw bytes of all parts,
// as what is used of it their stored bytes.
func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	snap := s.snapshots.at(0)
	if snap == nil {
		return fuse.EIO
	}
	defer snap.release()
	raw, stored := snap.db.Totals()
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, maxName
	out.Blocks = uint64(raw+blockSize-1) / blockSize
	out.Bfree = uint64(max(raw-stored, 0)) / blockSize
	out.Bavail = out.Bfree
	for _, g := range snap.generations {
		out.Files += uint64(g.Files + g.Dirs)
	}
	return fuse.OK
}

// GetXAttr implements fuse.RawFileSystem.
func (s *server) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	s.m.latency.request()
	if s.mute && !strings.HasPrefix(name, aclPrefix) {
		return 0, fuse.ENOSYS
	}
	if name == index.LabelXattr && !s.hasLabels() {
		return 0, fuse.ENOTSUP
	}
	if isPathNode(h.NodeId) {
		value, status := s.historyXattr(h.NodeId, name)
		if !status.Ok() {
			return 0, status
		}
		return reply(dest, value)
	}
	ino, status := s.xattrInode(h.NodeId)
	if !status.Ok() {
		return 0, status
	}
	if !ino.HasXattrs() {
		return 0, errNoAttr
	}
	var value string
	err := s.withInode(func(db *index.DB) (err error) {
		value, err = db.Xattr(ino, name)
		return err
	})
	switch {
	case errors.Is(err, index.ErrNotFound):
		return 0, errNoAttr
	case err != nil:
		return 0, s.fail("getxattr", h.NodeId, err)
	}
	return reply(dest, value)
}

// hasLabels reports whether any file has a label of SELinux. Programs that hear that
// a file system keeps none do not ask for those of its other files.
func (s *server) hasLabels() bool {
	snap := s.snapshots.at(0)
	if snap == nil {
		return true
	}
	defer snap.release()
	return snap.db.HasLabels()
}

// ListXAttr implements fuse.RawFileSystem.
func (s *server) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	s.m.latency.request()
	if s.mute {
		return 0, fuse.ENOSYS
	}
	ino, status := s.xattrInode(h.NodeId)
	if !status.Ok() || !ino.HasXattrs() {
		return 0, status
	}
	var xattrs []archive.Xattr
	err := s.withInode(func(db *index.DB) (err error) {
		xattrs, err = db.Xattrs(ino)
		return err
	})
	switch {
	case errors.Is(err, index.ErrNotFound):
		return 0, errStale
	case err != nil:
		return 0, s.fail("listxattr", h.NodeId, err)
	}
	trusted := func(x archive.Xattr) bool { return strings.HasPrefix(x.Name, "trusted.") }
	if slices.ContainsFunc(xattrs, trusted) && !administers(h.Caller) {
		xattrs = slices.DeleteFunc(xattrs, trusted)
	}
	var names strings.Builder
	for _, x := range xattrs {
		names.WriteString(x.Name)
		names.WriteByte(0)
	}
	return reply(dest, names.String())
}

// xattrInode returns the inode that holds a node's extended attributes. What
// lies above the generations has the inode 0, which has none.
func (s *server) xattrInode(node uint64) (index.Ino, fuse.Status) {
	if ino, ok := fileInode(node); ok {
		return ino, fuse.OK
	}
	if _, link := splitLinkNode(node); link || isPathNode(node) || s.isListing(node) {
		return 0, fuse.OK
	}
	d, status := s.directory(node)
	if !status.Ok() {
		return 0, status
	}
	defer d.release()
	dir, err := d.view().Dir(d.dir)
	if err != nil {
		return 0, s.failDir("getxattr", node, err)
	}
	return dir.Ino, fuse.OK
}

// reply copies an answer into the buffer that the caller has for it, which is
// empty where only its length is asked for.
func reply(dest []byte, answer string) (uint32, fuse.Status) {
	if len(dest) < len(answer) {
		return uint32(len(answer)), fuse.ERANGE
	}
	return uint32(copy(dest, answer)), fuse.OK
}
