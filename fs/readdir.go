package fs

import (
	"fmt"
	"syscall"

	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// The offsets of a directory are 1 behind ".", 2 behind "..", and then one more
// behind every entry, in the order of the index. There is no open directory to
// keep a position for: any reader may ask for any offset at any time.
const offsetEntries = 2

// ReadDir implements fuse.RawFileSystem.
func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in.NodeId, in.Offset, plainList{out})
}

// ReadDirPlus implements fuse.RawFileSystem.
func (s *server) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.Offset > 0 {
		s.pusher.listed(in.NodeId)
	}
	list := plusList{DirEntryList: out}
	status := s.readDir(in.NodeId, in.Offset, &list)
	s.pusher.tell(in.NodeId, list.files)
	return status
}

// entryList is a reply that has room for so many entries.
type entryList interface {
	// add adds an entry, and reports false where there is no room for it. set
	// fills in its attributes if they are wanted.
	add(e fuse.DirEntry, set func(*fuse.EntryOut) fuse.Status) bool
}

type plainList struct{ *fuse.DirEntryList }

func (l plainList) add(e fuse.DirEntry, _ func(*fuse.EntryOut) fuse.Status) bool {
	return l.AddDirEntry(e)
}

type plusList struct {
	*fuse.DirEntryList
	files []index.Ino // that were added
}

func (l *plusList) add(e fuse.DirEntry, set func(*fuse.EntryOut) fuse.Status) bool {
	out := l.AddDirLookupEntry(e)
	if out == nil {
		return false
	}
	if !set(out).Ok() {
		*out = fuse.EntryOut{} // the kernel will look the name up, and get the error
	}
	if i, ok := fileInode(out.NodeId); ok && out.Mode&syscall.S_IFMT == syscall.S_IFREG && out.Size > 0 {
		l.files = append(l.files, i)
	}
	return true
}

func (s *server) readDir(node, offset uint64, out entryList) fuse.Status {
	s.m.latency.request()
	if s.isListing(node) {
		return s.readListing(node, offset, out)
	}
	if isPathNode(node) {
		return s.readHistory(node, offset, out)
	}
	d, status := s.directory(node)
	if !status.Ok() {
		return status
	}
	defer d.release()
	if !addDots(node, offset, out) {
		return fuse.OK
	}
	if err := s.readDirectory(node, d, int64(max(offset, offsetEntries)-offsetEntries), out); err != nil {
		return s.failDir("readdir", node, err)
	}
	return fuse.OK
}

// addDots adds "." and ".." where the offset is not behind them. The number of
// the parent is not known; nobody relies on it.
func addDots(node, offset uint64, out entryList) bool {
	unset := func(*fuse.EntryOut) fuse.Status { return fuse.ENOENT }
	if offset < 1 && !out.add(fuse.DirEntry{Name: ".", Mode: fuse.S_IFDIR, Ino: node, Off: 1}, unset) {
		return false
	}
	return offset >= 2 || out.add(fuse.DirEntry{Name: "..", Mode: fuse.S_IFDIR, Ino: fuse.FUSE_UNKNOWN_INO, Off: 2}, unset)
}

func (s *server) readListing(node, offset uint64, out entryList) fuse.Status {
	l := s.listing(node)
	if l == nil {
		return errStale
	}
	if !addDots(node, offset, out) {
		return fuse.OK
	}
	for _, e := range l.after(offset) {
		set := func(out *fuse.EntryOut) fuse.Status { return s.setListedEntry(out, e) }
		if !out.add(fuse.DirEntry{Name: e.name, Mode: e.mode, Ino: e.node, Off: e.offset}, set) {
			return fuse.OK
		}
	}
	return fuse.OK
}

// readDirectory adds the entries of a directory behind the first `behind` ones. It
// starts from the nearest mark that an earlier call has left, and leaves marks
// for later ones, so that reading a directory in pieces takes time in
// proportion to its entries.
func (s *server) readDirectory(node uint64, d directory, behind int64, out entryList) error {
	at := s.marks.nearest(node, behind)
	if at.end {
		return nil
	}
	view, full := d.view(), false
	err := view.List(d.dir, at.name, func(e index.Dirent) bool {
		if at.passed >= behind && !s.addDirent(out, d, e, at.passed) {
			full = true
			return false
		}
		at = mark{passed: at.passed + 1, name: e.Name}
		if at.passed%marksEvery == 0 {
			s.marks.add(node, at)
		}
		return true
	})
	if err != nil {
		return err
	}
	if !full {
		if err := checkListed(view, d.dir, at.passed); err != nil {
			return err
		}
		at.end = true
	}
	s.marks.add(node, at)
	return nil
}

func (s *server) addDirent(out entryList, d directory, e index.Dirent, passed int64) bool {
	entry := fuse.DirEntry{Name: e.Name, Mode: typeMode(e.Attr.Type), Ino: d.node(e), Off: offsetEntries + uint64(passed) + 1}
	return out.add(entry, func(out *fuse.EntryOut) fuse.Status {
		setEntry(out, d, e)
		return fuse.OK
	})
}

// checkListed makes sure that a listing that came to its end was whole.
func checkListed(v index.View, dir index.DirID, listed int64) error {
	d, err := v.Dir(dir)
	if err != nil {
		return err
	}
	if listed != int64(d.Children) {
		return fmt.Errorf("%w: %d of %d entries found", index.ErrDamaged, listed, d.Children)
	}
	return nil
}
