package index

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

const (
	sealName = "seal.json"
	maxSeal  = 16 << 20 // bytes of a seal

	// schema is the version of keys, values and seal. An index of another one
	// is rebuilt.
	schema = 7
)

// seal is the last file that is written into an index directory. It says what
// the index covers and what files it has. Whoever reads a table believes it, so
// nothing is opened that does not agree with its seal.
type seal struct {
	Schema     int            `json:"schema"`
	Repository string         `json:"repository"`    // id
	Record     uint64         `json:"record"`        // the newest record covered
	Digest     archive.Digest `json:"record_digest"` // of it
	Manifest   fileSeal       `json:"manifest"`
	Tables     []tableFile    `json:"tables"`
}

// fileSeal is the size and digest of one file.
type fileSeal struct {
	Stored int64        `json:"stored"`
	BLAKE3 archive.Hash `json:"blake3"`
}

// files returns all files but the seal.
func (s *seal) files() map[string]fileSeal {
	files := map[string]fileSeal{manifestName: s.Manifest}
	for _, t := range s.Tables {
		files[t.name()] = fileSeal{Stored: t.Stored, BLAKE3: t.BLAKE3}
	}
	return files
}

// text returns the bytes of the file, which are a function of what they say.
func (s *seal) text() ([]byte, error) {
	text, err := json.MarshalIndent(s, "", "\t")
	return append(text, '\n'), err
}

// writeSeal seals a finished builder's directory: everything in it is on stable
// storage then, and nobody but its owner can write to it.
func writeSeal(b *builder, repository string) error {
	s := seal{Schema: schema, Repository: repository, Record: b.number, Digest: b.meta.digest,
		Manifest: b.manifest, Tables: b.tables}
	text, err := s.text()
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if err := writeFile(b.fsys, filepath.Join(b.dir, sealName), text); err != nil {
		return err
	}
	if err := dropWriters(b.fsys, b.dir); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return b.fsys.SyncDir(b.dir)
}

// dropWriters takes the right to write from everybody but the owner.
func dropWriters(fsys disk.FS, name string) error {
	info, err := os.Stat(name)
	if err != nil || info.Mode()&0o022 == 0 {
		return err
	}
	return fsys.Chmod(name, info.Mode().Perm()&^0o022)
}

// verifySeal reads the seal of an index directory and checks every file against
// it.
func verifySeal(dir, repository string, record uint64, o owners, v *verified) (*seal, error) {
	if err := o.check(dir, fs.ModeDir); err != nil {
		return nil, err
	}
	s, err := readSeal(filepath.Join(dir, sealName), o)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Schema != schema:
		return nil, fmt.Errorf("%w: %d, this program's is %d", errSchema, s.Schema, schema)
	case s.Repository != repository:
		return nil, fmt.Errorf("it is of the repository %q", s.Repository)
	case s.Record != record:
		return nil, fmt.Errorf("it says that it covers record %d", s.Record)
	}
	if err := checkNames(dir, s); err != nil {
		return nil, err
	}
	return s, checkFiles(dir, s.files(), o, v)
}

func readSeal(name string, o owners) (*seal, error) {
	if err := o.check(name, 0); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, err
	case info.Size() > maxSeal:
		return nil, fmt.Errorf("%s is too long", sealName)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSeal))
	if err != nil {
		return nil, err
	}
	return parseSeal(text)
}

func parseSeal(text []byte) (*seal, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	s := new(seal)
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("%s: %w", sealName, err)
	}
	known := map[uint64]bool{}
	for _, t := range s.Tables {
		if t.Level < 1 || t.Level >= maxLevels || t.Stored <= 0 || known[t.ID] {
			return nil, fmt.Errorf("%s: impossible table %d", sealName, t.ID)
		}
		known[t.ID] = true
	}
	if written, err := s.text(); err != nil || s.Schema == schema && !bytes.Equal(text, written) {
		return nil, fmt.Errorf("%s was changed", sealName)
	}
	return s, nil
}

// checkNames checks that a directory has exactly the files that its seal names.
func checkNames(dir string, s *seal) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	files := s.files()
	for _, e := range entries {
		if _, ok := files[e.Name()]; !ok && e.Name() != sealName {
			return fmt.Errorf("%q does not belong to it", e.Name())
		}
		delete(files, e.Name())
	}
	for name := range files {
		return fmt.Errorf("%s is missing", name)
	}
	return nil
}

// checkFiles checks sizes and digests, on all cores.
func checkFiles(dir string, files map[string]fileSeal, o owners, v *verified) error {
	names := make(chan string, len(files))
	for name := range files {
		names <- name
	}
	close(names)
	errs := make(chan error, len(files))
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(files)) {
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			for name := range names {
				errs <- v.check(filepath.Join(dir, name), files[name], buf, o)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// verified are the files whose digests were computed, as they were then. It is safe
// for concurrent use.
type verified struct {
	before map[fileState]archive.Hash // by an earlier Open; not written to
	mu     sync.Mutex
	now    map[fileState]archive.Hash // by this one, those of before that it needed included
}

// fileState changes whenever a file does.
type fileState struct {
	device, inode uint64
	stored        int64
	mtime, ctime  unix.Timespec
}

func stateOf(s *unix.Stat_t) fileState {
	return fileState{device: s.Dev, inode: s.Ino, stored: s.Size, mtime: s.Mtim, ctime: s.Ctim}
}

// newVerified returns an empty set. What the Open that made the index previous has
// verified is believed as long as it has not changed since; previous may be nil.
func newVerified(previous *DB) *verified {
	v := &verified{now: map[fileState]archive.Hash{}}
	if previous != nil && previous.verified != nil {
		v.before = previous.verified.now
	}
	return v
}

// check checks size and digest of a file. buf is scratch.
func (v *verified) check(name string, want fileSeal, buf []byte, o owners) error {
	if err := o.check(name, 0); err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return err
	}
	state := stateOf(&stat)
	if state.stored != want.Stored {
		return wrongSize(name, state.stored, want)
	}
	if digest, ok := v.before[state]; !ok || digest != want.BLAKE3 {
		if err := checkDigest(f, want, buf); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now[state] = want.BLAKE3
	return nil
}

func checkDigest(f *os.File, want fileSeal, buf []byte) error {
	name := f.Name()
	h := blake3.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
	if err != nil {
		return err
	}
	if n != want.Stored {
		return wrongSize(name, n, want)
	}
	if archive.Hash(h.Sum(nil)) != want.BLAKE3 {
		return fmt.Errorf("%s was changed: its digest is another", filepath.Base(name))
	}
	return nil
}

func wrongSize(name string, stored int64, want fileSeal) error {
	return fmt.Errorf("%s has %d bytes, not %d", filepath.Base(name), stored, want.Stored)
}

// owners are the users whose files are believed: root, us, and the owner of the
// repository, who can write the log as well.
type owners [3]uint32

func ownersOf(repository string) (owners, error) {
	info, err := os.Stat(repository)
	if err != nil {
		return owners{}, fmt.Errorf("index: %w", err)
	}
	return owners{0, uint32(os.Geteuid()), userOf(info)}, nil
}

func userOf(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }

// check refuses a file that somebody may have planted: one that is not of the
// wanted type, belongs to a stranger, or can be written by its group or others.
func (o owners) check(name string, want fs.FileMode) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	base := filepath.Base(name)
	switch user := userOf(info); {
	case info.Mode().Type() != want:
		return fmt.Errorf("%s has the wrong type: %s", base, info.Mode())
	case info.Mode()&0o022 != 0:
		return fmt.Errorf("%s can be written by others: %s", base, info.Mode())
	case !slices.Contains(o[:], user):
		return fmt.Errorf("%s belongs to a stranger: user %d", base, user)
	}
	return nil
}
