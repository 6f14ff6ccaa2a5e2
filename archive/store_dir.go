package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/backupfs/backupfs/internal/disk"
	"golang.org/x/sys/unix"
)

// DirStore is a Store over a local directory. Objects are files of mode 0400,
// directories are made as they are needed, of mode 0700. Drafts lie in
// tmp/w-<random>/, the writer directory of this DirStore. Beside it is the file
// tmp/w-<random>.lock, which is held by flock for as long as the DirStore lives:
// whoever can take that lock knows that the owner is dead and may remove both.
// disk.Of says whom all of that belongs to.
//
// A DirStore is safe for concurrent use by many goroutines, and any number of
// DirStores in any number of processes may share one directory, on any number of
// machines where the file system passes locks of files on.
type DirStore struct {
	dir   string // absolute
	fsys  disk.FS
	links bool // only a link is exclusive

	mu     sync.Mutex
	writer string          // path of the writer directory; "" before the first draft
	lock   disk.File       // the file beside it, locked; nil before the first draft
	closed bool            // no more drafts
	synced map[string]bool // directories, relative to dir, whose own entry is on stable storage
}

// NewDirStore returns a Store over dir, which must exist. It writes nothing:
// the writer directory is made with the first draft. Close ends it.
func NewDirStore(dir string) (*DirStore, error) { return newDirStoreOn(disk.Of(dir), dir) }

func newDirStoreOn(fsys disk.FS, dir string) (*DirStore, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, objectError("open store", dir, err)
	}
	if !info.IsDir() {
		return nil, objectError("open store", dir, unix.ENOTDIR)
	}
	// Asked for an exclusive rename on SMB, the kernel looks itself whether the name is
	// free, and the server replaces what another machine has given it since; a link it
	// refuses ([MS-FSCC], ReplaceIfExists).
	var st unix.Statfs_t
	links := unix.Statfs(abs, &st) == nil && isSMB(&st)
	return &DirStore{dir: abs, fsys: fsys, links: links, synced: map[string]bool{}}, nil
}

// isSMB reports whether a file system is of an SMB server.
func isSMB(st *unix.Statfs_t) bool {
	kind := uint32(st.Type)
	return kind == unix.CIFS_SUPER_MAGIC || kind == unix.SMB2_SUPER_MAGIC
}

// Dir returns the absolute path of the directory.
func (s *DirStore) Dir() string { return s.dir }

// Close removes the writer directory, with every draft and temporary directory
// in it, and releases its lock. No draft may be in use. Objects can still be
// opened, listed and removed afterwards, but not created.
func (s *DirStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.lock == nil {
		return nil
	}
	err := s.fsys.RemoveAll(s.writer)
	if err == nil {
		err = s.fsys.RemoveAll(s.lock.Name()) // which somebody may have removed
	}
	s.lock.Close()
	s.lock = nil
	if err != nil {
		return fmt.Errorf("remove the writer directory: %w", err)
	}
	return nil
}

// TempDir makes a new directory inside the writer directory and returns its
// path: pattern with a random string in place of its last "*", or at its end.
// It lies on the file system of the objects and vanishes with Close, or after a
// crash with the next writer.
func (s *DirStore) TempDir(pattern string) (string, error) {
	var dir string
	err := s.inWriterDir(func(writer string) error {
		dir = filepath.Join(writer, randomName(pattern))
		if err := s.fsys.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make a temporary directory: %w", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return dir, nil
}

// Create implements Store.
func (s *DirStore) Create() (Draft, error) {
	d := &dirDraft{store: s}
	err := s.inWriterDir(func(writer string) (err error) {
		d.f, err = s.fsys.OpenFile(filepath.Join(writer, randomName("draft-*")), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
		if err != nil {
			return fmt.Errorf("create a draft: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Open implements Store.
func (s *DirStore) Open(name string) (Object, error) {
	if err := checkName(name); err != nil {
		return nil, objectError("open", name, err)
	}
	f, stored, err := openRegular(s.path(name))
	if err != nil {
		return nil, objectError("open", name, err)
	}
	return &dirObject{f: f, name: name, stored: stored}, nil
}

// oddFile says why a file that is there cannot be what it should be.
type oddFile string

// Error implements error.
func (o oddFile) Error() string { return string(o) }

// openRegular opens a file to read and returns its length. What is no regular file
// it refuses: a FIFO would block, a device has no end.
func openRegular(name string) (*os.File, int64, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	stored, err := regularSize(f)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, stored, nil
}

// regularSize returns the length of an open file. What is no regular file is an error.
func regularSize(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, &fs.PathError{Op: "open", Path: f.Name(), Err: oddFile("not a regular file")}
	}
	return info.Size(), nil
}

// ReadSmallFile is os.ReadFile for a regular file that has no more than limit bytes; anything
// else is an error. It never blocks.
func ReadSmallFile(name string, limit int64) ([]byte, error) {
	f, stored, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readSmall(f, stored, limit)
}

// readSmall reads an open file of stored bytes, of no more than limit.
func readSmall(f *os.File, stored, limit int64) ([]byte, error) {
	if stored > limit {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: oddFile(fmt.Sprintf("it has %d bytes, want at most %d", stored, limit))}
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// Settle implements Store. The bytes of an object, and the entries of the directories
// that it lies in, are stored before it is visible; its own entry may not be.
func (s *DirStore) Settle(name string) error {
	err := checkName(name)
	if err == nil {
		err = s.fsys.SyncDir(filepath.Dir(s.path(name)))
	}
	if err != nil {
		return objectError("sync", name, err)
	}
	return nil
}

// Remove implements Store. The removal is not synced: until Settle, a crash may bring
// the object back.
func (s *DirStore) Remove(name string) error {
	err := checkName(name)
	if err == nil {
		err = s.fsys.Remove(s.path(name))
	}
	if err != nil {
		return objectError("remove", name, err)
	}
	return nil
}

// List implements Store. What lies under tmp/ is no object.
func (s *DirStore) List(prefix string) iter.Seq2[ObjectInfo, error] {
	return func(yield func(ObjectInfo, error) bool) {
		if err := s.checkPrefix(prefix); err != nil {
			yield(ObjectInfo{}, objectError("list", prefix, err))
			return
		}
		s.walk(prefix, true, yield)
	}
}

// Names implements Store.
func (s *DirStore) Names(prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := s.checkPrefix(prefix); err != nil {
			yield("", objectError("list", prefix, err))
			return
		}
		s.walk(prefix, false, func(o ObjectInfo, err error) bool { return yield(o.Name, err) })
	}
}

// checkPrefix fails where prefix is malformed or the whole store is missing.
func (s *DirStore) checkPrefix(prefix string) error {
	if dir, ok := strings.CutSuffix(prefix, "/"); ok {
		if err := checkName(dir); err != nil {
			return err
		}
	} else if prefix != "" {
		return errors.New(`prefix does not end with "/"`)
	}
	_, err := os.Stat(s.dir)
	return err
}

// walk yields what lies below prefix and reports whether to go on. Where sizes
// is false, only symbolic links are looked at.
func (s *DirStore) walk(prefix string, sizes bool, yield func(ObjectInfo, error) bool) bool {
	entries, err := os.ReadDir(s.path(prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		yield(ObjectInfo{}, objectError("list", prefix, err))
		return false
	}
	for _, e := range s.infos(prefix, entries, sizes) {
		var ok bool
		switch {
		case e.err != nil:
			yield(ObjectInfo{}, objectError("list", e.name, e.err))
			ok = false
		case strings.HasSuffix(e.name, "/"):
			ok = s.walk(e.name, sizes, yield)
		default:
			ok = yield(ObjectInfo{Name: e.name, Stored: e.stored}, nil)
		}
		if !ok {
			return false
		}
	}
	return true
}

type listed struct {
	name   string // ends with "/" if a directory
	stored int64
	err    error
}

// infos looks at the entries of one directory, follows symbolic links, leaves
// out what is neither an object nor a directory, or vanished, and sorts by the
// names as List yields them: "a-b" comes before what is below "a/". A link that leads
// nowhere is none of them: what it stood for is missing.
func (s *DirStore) infos(prefix string, entries []fs.DirEntry, sizes bool) []listed {
	list := make([]listed, 0, len(entries))
	for _, e := range entries {
		name := prefix + e.Name()
		switch {
		case name == "tmp":
			continue
		case e.IsDir():
			list = append(list, listed{name: name + "/"})
			continue
		case e.Type().IsRegular() && !sizes:
			list = append(list, listed{name: name})
			continue
		}
		info, err := os.Stat(s.path(name))
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP):
		case err != nil:
			list = append(list, listed{name: name, err: err})
		case info.IsDir():
			list = append(list, listed{name: name + "/"})
		case info.Mode().IsRegular():
			list = append(list, listed{name: name, stored: info.Size()})
		}
	}
	slices.SortFunc(list, func(a, b listed) int { return strings.Compare(a.name, b.name) })
	return list
}

func (s *DirStore) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// ensureDir makes the directory rel and the ones above it and syncs the entries
// of all of them: also of those that are there already, as another process may
// have made them a moment ago and not synced them yet.
func (s *DirStore) ensureDir(rel string) error {
	if rel == "." {
		return nil
	}
	s.mu.Lock()
	known := s.synced[rel]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.ensureDir(path.Dir(rel)); err != nil {
		return err
	}
	if err := s.fsys.Mkdir(s.path(rel), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.fsys.SyncDir(s.path(path.Dir(rel))); err != nil {
		return err
	}
	s.mu.Lock()
	s.synced[rel] = true
	s.mu.Unlock()
	return nil
}

// forgetDirs drops what is known about directories: one of them is gone.
func (s *DirStore) forgetDirs() {
	s.mu.Lock()
	clear(s.synced)
	s.mu.Unlock()
}

// inWriterDir calls create, which makes something in the writer directory. Where that is
// gone, as after an older copy was put back over the repository, another one is made.
func (s *DirStore) inWriterDir(create func(writer string) error) error {
	writer, err := s.writerDir()
	if err != nil {
		return err
	}
	if err = create(writer); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.forgetWriter(writer)
	if writer, err = s.writerDir(); err != nil {
		return err
	}
	return create(writer)
}

// forgetWriter gives up a writer directory that is gone, unless somebody else was faster.
func (s *DirStore) forgetWriter(writer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil || s.writer != writer {
		return
	}
	_ = s.fsys.Remove(s.lock.Name()) // it may be gone, too; else the next writer removes it
	s.lock.Close()
	s.lock = nil
}

// writerDir returns the path of the writer directory; the first call makes it,
// after removing what dead writers left.
func (s *DirStore) writerDir() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", fmt.Errorf("create a draft: store %w", fs.ErrClosed)
	}
	if s.lock != nil {
		return s.writer, nil
	}
	tmp := filepath.Join(s.dir, "tmp")
	if err := s.fsys.Mkdir(tmp, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("create a draft: %w", err)
	}
	if info, err := os.Lstat(tmp); err == nil && !info.IsDir() { // what lies elsewhere is not ours to remove
		return "", fmt.Errorf("create a draft: %s is not a directory: remove it", tmp)
	}
	s.removeDead(tmp)
	lock, err := s.lockNew(tmp)
	if err != nil {
		return "", fmt.Errorf("create a draft: %w", err)
	}
	writer := strings.TrimSuffix(lock.Name(), lockSuffix)
	if err := s.fsys.Mkdir(writer, 0o700); err != nil {
		_ = s.fsys.Remove(lock.Name()) // else the next writer does
		lock.Close()
		return "", fmt.Errorf("create a draft: %w", err)
	}
	s.writer, s.lock = writer, lock
	return writer, nil
}

// writerPrefix is what the name of a writer directory begins with.
const writerPrefix = "w-"

// lockSuffix is what the name of a lock has behind that of its writer directory. The
// lock is of a file that is open for writing: NFS and SMB pass on to other machines
// no lock of a directory, and NFS no exclusive one of a file that is only read.
const lockSuffix = ".lock"

// lockNew makes the lock of a new writer directory in tmp and takes it. The directory
// is made after it and removed before it, so that there is no moment in which a
// directory of a living writer has no lock. Another writer's removeDead may take and
// remove the lock before it is taken here; then the next one is tried. On a file system
// without locks removeDead finds none that it could take, and takes nobody for dead.
func (s *DirStore) lockNew(tmp string) (disk.File, error) {
	const attempts = 100
	for range attempts {
		f, err := s.fsys.OpenFile(filepath.Join(tmp, randomName(writerPrefix+"*"+lockSuffix)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		err = lockFile(f, unix.LOCK_EX|unix.LOCK_NB)
		if (err == nil || noLocks(err)) && samePlace(f) {
			return f, nil
		}
		f.Close()
		if errors.Is(err, unix.ENOLCK) {
			return nil, lockError(err)
		}
	}
	return nil, fmt.Errorf("lock a file in %s: %d attempts failed", tmp, attempts)
}

// samePlace reports whether f is still what its path leads to. It opens that, for which
// a network file system asks the server; a stat it may answer from memory.
func samePlace(f disk.File) bool {
	there, err := os.OpenFile(f.Name(), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer there.Close()
	var open, found unix.Stat_t
	return unix.Fstat(int(f.Fd()), &open) == nil && unix.Fstat(int(there.Fd()), &found) == nil &&
		open.Dev == found.Dev && open.Ino == found.Ino
}

// removeDead removes every entry of tmp that no living process holds a lock of.
// It is a courtesy: what cannot be removed stays, and does no harm.
func (s *DirStore) removeDead(tmp string) {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return
	}
	settled := false
	for _, e := range entries {
		p := filepath.Join(tmp, e.Name())
		if !e.IsDir() && !e.Type().IsRegular() {
			_ = s.fsys.Remove(p)
			continue
		}
		lock := lockOfDead(p)
		if lock == nil {
			continue
		}
		if !settled { // an index that was moved to here must not come back without its files
			_ = s.fsys.SyncDir(filepath.Join(s.dir, "index"))
			settled = true
		}
		_ = s.fsys.RemoveAll(p)
		if name := lock.Name(); name != p {
			_ = s.fsys.Remove(name)
		}
		lock.Close()
	}
}

// lockOfDead takes the lock of an entry of tmp, which is the file beside it or, where
// there is none, the entry itself. It returns nil where somebody holds it, or may.
func lockOfDead(entry string) *os.File {
	const flags = unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := openToLock(entry+lockSuffix, true, flags)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = openToLock(entry, true, flags)
	}
	if err != nil {
		return nil
	}
	if lockFile(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil
	}
	return f
}

// dirDraft is a Draft of a DirStore. What was written so far can be read back.
type dirDraft struct {
	store   *DirStore
	f       disk.File
	err     error // sticky
	written int64
	pushed  int64 // bytes that the kernel was told to write back
	done    bool  // published or discarded
}

// writeback is how many bytes are written before the kernel is told to start
// storing them, so that the sync of Publish finds little left to wait for.
const writeback = 8 << 20

func (d *dirDraft) Write(p []byte) (int, error) {
	if err := d.usable(); err != nil {
		return 0, err
	}
	n, err := d.f.Write(p)
	d.written += int64(n)
	if err != nil {
		d.err = fmt.Errorf("write a draft: %w", err)
		return n, d.err
	}
	if d.written-d.pushed >= writeback {
		_ = unix.SyncFileRange(int(d.f.Fd()), d.pushed, d.written-d.pushed, unix.SYNC_FILE_RANGE_WRITE)
		d.pushed = d.written
	}
	return n, nil
}

// ReadAt implements io.ReaderAt over what was written.
func (d *dirDraft) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

func (d *dirDraft) usable() error {
	if d.err == nil && d.done {
		return fmt.Errorf("write a draft: %w", fs.ErrClosed)
	}
	return d.err
}

// Publish implements Draft. If the directory of the object cannot be synced,
// the object may be visible although an error is returned: it is not removed,
// because another writer may already rely on it.
func (d *dirDraft) Publish(name string) error {
	if err := d.usable(); err != nil {
		return err
	}
	return d.finish("publish", name, d.store.renameNew)
}

// Replace implements Draft. Its errors leave behind what those of Publish do.
func (d *dirDraft) Replace(name string) error {
	if err := d.usable(); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.finish("replace", name, d.store.fsys.Rename)
}

// finish makes the draft the object of that name, by way of rename.
func (d *dirDraft) finish(op, name string, rename func(from, to string) error) error {
	if err := d.publish(name, rename); err != nil {
		d.err = objectError(op, name, err)
		return d.err
	}
	d.done = true
	d.f.Close()
	return nil
}

func (d *dirDraft) publish(name string, rename func(from, to string) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.f.Sync(); err != nil {
		return err
	}
	err := d.move(name, rename)
	if errors.Is(err, fs.ErrNotExist) { // a directory that was there once is gone
		d.store.forgetDirs()
		err = d.move(name, rename)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Where the name is taken, its owner may not have synced the directory yet:
	// whoever is told that the object exists may rely on it.
	if syncErr := d.store.fsys.SyncDir(filepath.Dir(d.store.path(name))); syncErr != nil {
		return fmt.Errorf("it is there, but a crash of the machine may take it away again: %w", syncErr)
	}
	return err
}

// move renames the draft, after it has made the directory of the object.
func (d *dirDraft) move(name string, rename func(from, to string) error) error {
	if err := d.store.ensureDir(path.Dir(name)); err != nil {
		return err
	}
	return rename(d.f.Name(), d.store.path(name))
}

// Discard implements Draft.
func (d *dirDraft) Discard() error {
	if d.done {
		return nil
	}
	d.done = true
	d.f.Close()
	if err := d.store.fsys.Remove(d.f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard a draft: %w", err)
	}
	return nil
}

// renameNew renames a file to a name that must be free.
func (s *DirStore) renameNew(from, to string) error {
	if s.links {
		err := s.linkNew(from, to)
		if !noLinks(err) {
			return err
		}
	}
	err := s.fsys.RenameNew(from, to)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return s.linkNew(from, to)
	}
	return err
}

// noLinks reports whether an error says that the file system has no hard links.
func noLinks(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS)
}

// linkNew is renameNew for file systems that cannot rename exclusively. If the
// old name cannot be removed it stays among the drafts until the store is closed.
func (s *DirStore) linkNew(from, to string) error {
	if err := s.fsys.Link(from, to); err != nil {
		return err
	}
	_ = s.fsys.Remove(from)
	return nil
}

// dirObject is an Object of a DirStore.
type dirObject struct {
	f      *os.File
	name   string
	stored int64
}

func (o *dirObject) Size() int64 { return o.stored }

func (o *dirObject) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = objectError("read", o.name, err)
	}
	return n, err
}

func (o *dirObject) Close() error {
	if err := o.f.Close(); err != nil {
		return objectError("close", o.name, err)
	}
	return nil
}

// checkName fails where name is not the name of an object.
func checkName(name string) error {
	if name == "tmp" || strings.HasPrefix(name, "tmp/") {
		return errors.New("object name under tmp/")
	}
	for component := range strings.SplitSeq(name, "/") {
		if component == "" || component == "." || component == ".." {
			return fmt.Errorf("object name with the component %q", component)
		}
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' || name[i] == '\\' {
			return fmt.Errorf("object name with the byte %#02x", name[i])
		}
	}
	return nil
}

// objectError names the operation and the object, and drops the absolute paths
// of the operating system's own errors.
func objectError(op, name string, err error) error {
	switch e := err.(type) { //nolint:errorlint // only the outermost error: what wraps it has more to say
	case *fs.PathError:
		err = e.Err
	case *os.LinkError:
		err = e.Err
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}

// randomName puts a random string in place of the last "*" of pattern, or at its end.
func randomName(pattern string) string {
	i := strings.LastIndex(pattern, "*")
	if i < 0 {
		return pattern + rand.Text()
	}
	return pattern[:i] + rand.Text() + pattern[i+1:]
}
