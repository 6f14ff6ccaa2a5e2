package backup

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// ExportOptions says what is exported.
type ExportOptions struct {
	Paths []string          // with all below them, as index.View.Resolve takes them; none means all
	Note  func(text string) // called for what a tar stream cannot hold; nil means nobody

	Progress *ExportProgress // updated meanwhile; nil means nobody looks
}

// ExportProgress tells how far an export is. It is safe for concurrent use.
type ExportProgress struct {
	done, total atomic.Int64
	path        atomic.Pointer[string]
}

// Bytes returns the raw bytes of the files that were exported, each link counted
// and holes included, and of all that will be (0: not known, as it is of paths).
func (p *ExportProgress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

// Path returns the path that is worked on.
func (p *ExportProgress) Path() string {
	if path := p.path.Load(); path != nil {
		return *path
	}
	return ""
}

const (
	exportBuffer = 1 << 20  // bytes written at once
	exportCache  = 64 << 20 // raw bytes of decoded frames
)

// Export writes a generation, or paths of it, as a PAX tar stream that GNU tar
// and bsdtar restore in full: types, owners, times in ns, hard links, holes,
// extended attributes and ACLs. Sockets, for which tar has no type, and what is more
// than maxXattrs of a file's extended attributes are left out and noted. After an error the
// stream has no end-of-archive blocks, so that nobody takes it for complete. Compactions may
// go on meanwhile: db, which stays the caller's, need not know where they move contents.
func Export(ctx context.Context, w io.Writer, repo *archive.Repository, db *index.DB, g index.Generation, o ExportOptions) error {
	if o.Progress == nil {
		o.Progress = new(ExportProgress)
	}
	if len(o.Paths) == 0 {
		o.Progress.total.Store(g.Raw)
	}
	reader := archive.NewReader(repo.Store(), exportCache)
	defer reader.Close()
	out := bufio.NewWriterSize(w, exportBuffer)
	x := &export{ctx: ctx, repo: repo, db: db, newest: db, view: db.At(g.Number), reader: reader, out: out, tar: tar.NewWriter(out),
		note: o.Note, progress: o.Progress, links: make(map[index.Ino]string), buffer: make([]byte, exportBuffer)}
	defer x.use(db)
	if err := x.paths(g.Root, o.Paths); err != nil {
		return err
	}
	if err := x.tar.Close(); err != nil {
		return err
	}
	return out.Flush()
}

// export is an Export that is going on.
type export struct {
	ctx      context.Context
	repo     *archive.Repository
	db       *index.DB // of the caller
	newest   *index.DB // that, or a newer one, which knows where contents lie now
	view     index.View
	reader   *archive.Reader
	lost     error       // why bytes could not be read where they lie
	noted    string      // what was said last of that
	out      io.Writer   // where tar writes to
	tar      *tar.Writer // with all of out's members ended
	note     func(text string)
	progress *ExportProgress
	links    map[index.Ino]string // first name of each inode with several links
	buffer   []byte
}

// paths writes paths in their order, each once.
func (x *export) paths(root index.DirID, paths []string) error {
	for _, path := range outermost(paths) {
		e, err := x.view.Resolve(root, path)
		if err != nil {
			return PathError(path, err)
		}
		if err := x.entry(path, e); err != nil {
			return err
		}
	}
	return nil
}

// outermost returns paths without those that are, or lie below, another one, in
// path order. None means the root.
func outermost(paths []string) []string {
	var all []string
	for _, path := range slices.SortedFunc(slices.Values(paths), index.ComparePaths) {
		if path == "." {
			return []string{"."}
		}
		if n := len(all); n == 0 || path != all[n-1] && !strings.HasPrefix(path, all[n-1]+"/") {
			all = append(all, path)
		}
	}
	if len(all) == 0 {
		return []string{"."}
	}
	return all
}

// entry writes an entry and all below it.
func (x *export) entry(path string, e index.Dirent) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	x.progress.path.Store(&path)
	done := x.progress.done.Load()
	if err := x.member(path, e); err != nil {
		return fmt.Errorf("%s: %w", Printable("/"+path), err)
	}
	if e.Attr.Type == archive.TypeFile {
		x.progress.done.Store(done + e.Attr.Size) // holes and further links, too
	}
	entries, err := list(x.view, e.Dir)
	if err != nil {
		return fmt.Errorf("%s: %w", Printable("/"+path), err)
	}
	for _, child := range entries {
		if err := x.entry(join(path, child.Name), child); err != nil {
			return err
		}
	}
	return nil
}

var tarTypes = [...]byte{
	archive.TypeFile:    tar.TypeReg,
	archive.TypeDir:     tar.TypeDir,
	archive.TypeSymlink: tar.TypeSymlink,
	archive.TypeFIFO:    tar.TypeFifo,
	archive.TypeChar:    tar.TypeChar,
	archive.TypeBlock:   tar.TypeBlock,
}

// member writes one entry.
func (x *export) member(path string, e index.Dirent) error {
	if e.Attr.Type == archive.TypeSocket {
		x.notef("%s: a socket, left out: tar has no type for it", Printable("/"+path))
		return nil
	}
	first, linked := x.links[e.Ino]
	if linked {
		h := tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeLink, Name: path, Linkname: first, PAXRecords: charset(path, first)}
		h.Mode, h.Uid, h.Gid, h.ModTime = int64(e.Attr.Mode), int(e.Attr.UID), int(e.Attr.GID), e.Attr.Mtime.Time()
		return x.tar.WriteHeader(&h)
	}
	if e.Dir == 0 && e.Attr.Nlink > 1 {
		x.links[e.Ino] = path
	}
	inode, err := x.db.Inode(e.Ino)
	if err != nil {
		return err
	}
	h, err := x.header(path, e, inode.Target)
	if err != nil {
		return err
	}
	if inode.DataBytes < h.Size {
		return x.sparse(e, h)
	}
	if err := x.tar.WriteHeader(h); err != nil {
		return err
	}
	return x.copy(x.tar, e.Ino, 0, h.Size)
}

// header returns the header of an entry that is no further link.
func (x *export) header(path string, e index.Dirent, target string) (*tar.Header, error) {
	a := e.Attr
	h := &tar.Header{Format: tar.FormatPAX, Typeflag: tarTypes[a.Type], Name: path, Linkname: target, Mode: int64(a.Mode),
		Uid: int(a.UID), Gid: int(a.GID), ModTime: a.Mtime.Time(), Devmajor: int64(a.Rdev.Major), Devminor: int64(a.Rdev.Minor)}
	switch a.Type {
	case archive.TypeFile:
		h.Size = a.Size
	case archive.TypeDir:
		h.Name += "/"
	}
	h.PAXRecords = charset(path, target)
	xattrs, err := x.db.Xattrs(e.Ino)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, xattr := range xattrs {
		key, value, err := xattrRecord(xattr)
		if err != nil {
			return nil, err
		}
		if size += len(key) + len(value) + recordRoom; size > maxXattrs {
			x.notef("%s: its extended attribute %s, left out: all of a file may take %d KiB in a tar stream", Printable("/"+path), Printable(xattr.Name), maxXattrs>>10)
			size -= len(key) + len(value) + recordRoom
			continue
		}
		h.PAXRecords[key] = value
	}
	return h, nil
}

// archive/tar writes PAX records of up to 1 MiB for a file. Beside the extended attributes
// there are its names, and little else.
const (
	maxXattrs  = 1<<20 - 64<<10
	recordRoom = 16 // of a record, beside key and value
)

func (x *export) notef(format string, a ...any) {
	if x.note != nil {
		x.note(fmt.Sprintf(format, a...))
	}
}

// charset returns the PAX record that says of names that they are bytes, where
// they need it: those that are not UTF-8, and those that bsdtar would compose
// ("e" and an accent to "é"). GNU tar takes names for bytes anyway, and warns of
// the record.
func charset(names ...string) map[string]string {
	records := make(map[string]string)
	for _, name := range names {
		if !utf8.ValidString(name) || strings.ContainsFunc(name, composes) {
			records["hdrcharset"] = "BINARY"
		}
	}
	return records
}

// composes reports whether a character may become one with that before it: a mark,
// or a letter of a Hangul syllable.
func composes(r rune) bool { return unicode.Is(unicode.M, r) || 0x1100 <= r && r <= 0x11ff }

// ReadAt implements index.PartReader.
func (x *export) ReadAt(p archive.Part, b []byte, rawOffset int64) error {
	err := x.reader.ReadAt(p, b, rawOffset)
	x.lost = cmp.Or(x.lost, err)
	return err
}

// copy writes n bytes of a file from offset on.
func (x *export) copy(w io.Writer, ino index.Ino, offset, n int64) error {
	for n > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		b := x.buffer[:min(n, int64(len(x.buffer)))]
		if err := x.read(ino, b, offset); err != nil {
			return err
		}
		if x.lost != nil && x.lost.Error() != x.noted {
			x.noted = x.lost.Error()
			x.notef("%s: read from another part, which has the same content", x.noted)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		offset += int64(len(b))
		n -= int64(len(b))
		x.progress.done.Add(int64(len(b)))
	}
	return nil
}

// read fills b with bytes of a file. No lock keeps a compaction from deleting parts
// meanwhile: where one is missing, the log may say where its contents lie now.
func (x *export) read(ino index.Ino, b []byte, offset int64) error {
	for {
		x.lost = nil
		n, err := x.db.ReadPlaced(x, x.newest, ino, b, offset)
		if n == len(b) {
			return nil
		}
		if errors.Is(err, index.ErrNotFound) && x.newest != x.db {
			return fmt.Errorf("the generation was forgotten since the export began, and its data removed: export one that `mkbackup list` shows: %w", err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if newer, renewErr := x.renew(); !newer {
			return errors.Join(err, renewErr)
		}
	}
}

// renew opens the index again, and reports whether it is a newer one.
func (x *export) renew() (bool, error) {
	db, err := index.Open(x.repo, index.Options{Log: x.notef, Partial: true, Previous: x.newest, Interrupted: x.ctx.Err})
	if err != nil {
		return false, err
	}
	if db.Number() <= x.newest.Number() {
		return false, db.Close()
	}
	x.use(db)
	return true, nil
}

// use makes an index the newest one. That of the caller stays open.
func (x *export) use(db *index.DB) {
	if x.newest != x.db {
		_ = x.newest.Close() // of what was only read
	}
	x.newest = db
}
