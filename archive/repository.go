package archive

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/backupfs/backupfs/internal/disk"
)

// FormatVersion is the version of the format that this package reads and
// writes. docs/FORMAT.md describes it.
const FormatVersion = 1

// DefaultPartSize is the stored size at which a part ends: 64 MiB.
const DefaultPartSize = 64 << 20

// MinPartSize is the least part size that a repository may have: 64 KiB.
const MinPartSize = 64 << 10

const (
	configName = "repo.json"
	maxConfig  = 64 << 10 // bytes of it
	idLen      = 32       // hexadecimal digits of a repository's id
)

var (
	// ErrNoRepository says that there is no repository at a place.
	ErrNoRepository = errors.New("no repository")
	// ErrNoConfig says that a repository has lost its repo.json.
	ErrNoConfig = errors.New("a repository that has lost its " + configName)
	// ErrNewerFormat says that a newer version made the repository.
	ErrNewerFormat = errors.New("newer format")
	// ErrBadConfig says that the repo.json of a repository is there, but makes no sense.
	ErrBadConfig = errors.New("damaged")
)

// Config is what repo.json holds. It never changes.
type Config struct {
	Format   int       `json:"format"`    // FormatVersion
	ID       string    `json:"id"`        // 32 hexadecimal digits, random
	Created  time.Time `json:"created"`   // when
	PartSize int64     `json:"part_size"` // stored bytes at which a part ends
}

// Repository is an open repository: the store of its parts and log, and the
// place of its index. It is safe for concurrent use.
type Repository struct {
	Config
	store   *DirStore
	settled atomic.Pointer[RecordStamp] // of a record that is known to be on stable storage, and those before it
}

// InitOptions are the choices made once for a repository.
type InitOptions struct {
	PartSize int64 // stored bytes at which a part ends; 0 means DefaultPartSize
}

// Init makes a repository in dir, which must not exist, be empty, or hold only what an
// Init that was interrupted left. The directories above it are made where they are missing.
// What it makes in dir is closed to everybody but its owner, whatever the umask: a backup holds
// what others may not read. An empty directory keeps its mode.
func Init(dir string, o InitOptions) (*Repository, error) {
	dir, err := disk.Follow(dir)
	if err != nil {
		return nil, fmt.Errorf("make the repository: %w", err)
	}
	return InitOn(disk.Of(dir), dir, o)
}

// InitOn is Init by way of fsys, which must lead to the files of the machine. There is no
// ".." in dir.
func InitOn(fsys disk.FS, dir string, o InitOptions) (*Repository, error) {
	if o.PartSize == 0 {
		o.PartSize = DefaultPartSize
	}
	if o.PartSize < MinPartSize {
		return nil, fmt.Errorf("part size %d: the least is %d bytes", o.PartSize, MinPartSize)
	}
	dir = filepath.Clean(dir)
	if err := makeAbove(fsys, dir); err != nil {
		return nil, err
	}
	if err := makeEmptyDir(fsys, dir); err != nil {
		return nil, err
	}
	for _, sub := range layout {
		if err := fsys.Mkdir(filepath.Join(dir, sub), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the repository: %w", err)
		}
	}
	r, err := configure(fsys, dir, newID(), o.PartSize)
	if err != nil {
		return nil, fmt.Errorf("make the repository: %w", err)
	}
	return r, nil
}

func newID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails, says crypto/rand
	return fmt.Sprintf("%x", id)
}

// configure makes the directory dir a repository: it writes its repo.json.
func configure(fsys disk.FS, dir, id string, partSize int64) (*Repository, error) {
	store, err := newDirStoreOn(fsys, dir)
	if err != nil {
		return nil, err
	}
	r := &Repository{store: store, Config: Config{Format: FormatVersion, ID: id, Created: time.Now().UTC().Truncate(time.Second), PartSize: partSize}}
	if err := r.writeConfig(); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return r, nil
}

// RestoreConfig writes the repo.json of a repository that has lost it. id is what
// its indexes say, or "" for a new one. The part size is the default: nothing that
// is stored depends on it. The error wraps ErrNoRepository where there is no log.
// Nobody may write into the repository meanwhile. There is no ".." in dir.
func RestoreConfig(dir, id string) (*Repository, error) {
	there, err := Open(dir)
	if err == nil {
		return nil, errors.Join(fmt.Errorf("%s: its %s is there", dir, configName), there.Close())
	}
	if !errors.Is(err, ErrNoConfig) {
		return nil, err
	}
	if id == "" {
		id = newID()
	}
	if len(id) != idLen {
		return nil, fmt.Errorf("repository id %q: it must have %d hexadecimal digits", id, idLen)
	}
	r, err := configure(disk.Of(dir), dir, id, DefaultPartSize)
	if err != nil {
		return nil, fmt.Errorf("write %s again: %w", configName, err)
	}
	return r, nil
}

func noConfig(dir string) error {
	return fmt.Errorf("%s: %w: `mkbackup check --repair %s` writes it again", dir, ErrNoConfig, dir)
}

// hasLog reports whether there are log records in a directory.
func hasLog(dir string) bool {
	store, err := NewDirStore(dir)
	if err != nil {
		return false
	}
	records, err := (&Repository{store: store}).Records()
	return err == nil && len(records) > 0
}

// layout are the directories of a repository.
var layout = []string{"parts", "log", "index", "tmp"}

// makeAbove makes the directories above a path that are missing. What else is wrong with
// them whoever makes the path will say.
func makeAbove(fsys disk.FS, path string) error {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return fmt.Errorf("make the repository: %s is not a directory: give another place", dir)
	case err == nil && !fresh(dir) || dir == filepath.Dir(dir):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
		return nil
	}
	if err := makeAbove(fsys, dir); err != nil {
		return err
	}
	_, err = makeDir(fsys, dir, 0o777)
	return err
}

// fresh reports whether nothing is in a directory but the way to a repository, at most. An
// Init that was interrupted may have made it.
func fresh(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, _ := f.Readdirnames(2)
	return len(names) < 2
}

// makeDir makes a directory, unless it is there, so that it is there after a crash.
func makeDir(fsys disk.FS, dir string, perm fs.FileMode) (there bool, err error) {
	err = fsys.Mkdir(dir, perm)
	there = errors.Is(err, fs.ErrExist)
	if err != nil && !there {
		return false, fmt.Errorf("make the repository: %w", err)
	}
	// An Init that was interrupted may have made it. Whose directory it is may not be
	// allowed to open the one above.
	if err := fsys.SyncDir(filepath.Dir(dir)); err != nil && (!there || !errors.Is(err, fs.ErrPermission)) {
		return there, fmt.Errorf("make the repository: %w", err)
	}
	return there, nil
}

func makeEmptyDir(fsys disk.FS, dir string) error {
	there, err := makeDir(fsys, dir, 0o700)
	if err != nil || !there {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, configName)); err == nil {
		return fmt.Errorf("%s is a repository already", dir)
	}
	if hasLog(dir) {
		return noConfig(dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("make the repository: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" && !unused(dir, e) {
			return fmt.Errorf("%s is not empty: give a new or an empty directory", dir)
		}
	}
	return nil
}

// unused reports whether an entry is one that Init made, and nobody has used since.
func unused(dir string, e fs.DirEntry) bool {
	if !e.IsDir() || !slices.Contains(layout, e.Name()) {
		return false
	}
	below, err := os.ReadDir(filepath.Join(dir, e.Name()))
	return err == nil && !slices.ContainsFunc(below, func(b fs.DirEntry) bool {
		return e.Name() != "tmp" || !strings.HasPrefix(b.Name(), writerPrefix)
	})
}

func (r *Repository) writeConfig() error {
	text, err := json.MarshalIndent(r.Config, "", "  ")
	if err != nil {
		return err
	}
	draft, err := r.store.Create()
	if err != nil {
		return err
	}
	defer draft.Discard()
	if _, err := draft.Write(append(text, '\n')); err != nil {
		return err
	}
	if err := draft.Publish(configName); err != nil {
		return err
	}
	// It is what is locked, for which NFS wants a file that is open for writing.
	return r.FS().Chmod(filepath.Join(r.Dir(), configName), 0o600)
}

// Open opens the repository in dir. The error wraps ErrNoRepository, ErrNoConfig,
// ErrBadConfig or ErrNewerFormat where that is the reason.
func Open(dir string) (*Repository, error) {
	dir, err := disk.Follow(dir)
	if err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	return OpenOn(disk.Of(dir), dir)
}

// OpenOn is Open by way of fsys, which must lead to the files of the machine. There is no
// ".." in dir.
func OpenOn(fsys disk.FS, dir string) (*Repository, error) {
	text, err := ReadSmallFile(filepath.Join(dir, configName), maxConfig)
	var odd oddFile
	switch {
	case errors.Is(err, fs.ErrNotExist) && hasLog(dir):
		return nil, noConfig(dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w there; is its disk mounted? `mkbackup init` makes a new one", dir, ErrNoRepository)
	case errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%s: not a directory: give that of a repository", dir)
	case errors.As(err, &odd):
		return nil, configError(dir, fmt.Errorf("%w: %w", ErrBadConfig, odd))
	case err != nil:
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	config, err := parseConfig(text)
	if err != nil {
		return nil, configError(dir, err)
	}
	store, err := newDirStoreOn(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	return &Repository{Config: config, store: store}, nil
}

// configError says what is wrong with the repo.json of a directory, and what to do.
func configError(dir string, err error) error {
	name := filepath.Join(dir, configName)
	if errors.Is(err, ErrBadConfig) && hasLog(dir) {
		return fmt.Errorf("%s: %w: move it away, and `mkbackup check --repair %s` writes a new one", name, err, dir)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// ReadConfig reads the repo.json of any repository as a file that open opens by its name,
// without blocking. What is no regular file is an error.
func ReadConfig(open func(name string) (*os.File, error)) (Config, error) {
	f, err := open(configName)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	stored, err := regularSize(f)
	if err != nil {
		return Config{}, err
	}
	text, err := readSmall(f, stored, maxConfig)
	if err != nil {
		return Config{}, err
	}
	return parseConfig(text)
}

func parseConfig(text []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrBadConfig, err)
	}
	switch {
	case c.Format > FormatVersion:
		return Config{}, fmt.Errorf("%w %d, this program knows up to %d: use a newer program", ErrNewerFormat, c.Format, FormatVersion)
	case c.Format < 1 || len(c.ID) != idLen || c.PartSize < MinPartSize:
		return Config{}, fmt.Errorf("%w: format %d, id %q, part size %d", ErrBadConfig, c.Format, c.ID, c.PartSize)
	}
	return c, nil
}

// Store returns the store of the parts and the log.
func (r *Repository) Store() Store { return r.store }

// FS returns the way to change files in Dir.
func (r *Repository) FS() disk.FS { return r.store.fsys }

// Dir returns the directory that the repository lies in.
func (r *Repository) Dir() string { return r.store.Dir() }

// IndexDir returns the directory of the sealed indexes.
func (r *Repository) IndexDir() string { return filepath.Join(r.store.Dir(), "index") }

// TempDir makes a directory for unpublished work, on the file system of
// IndexDir. What is left of it when the process ends is removed by a later one.
func (r *Repository) TempDir(pattern string) (string, error) { return r.store.TempDir(pattern) }

// unnamedFile makes a file for unpublished work that nobody else sees.
func (r *Repository) unnamedFile() (disk.File, error) {
	dir, err := r.store.TempDir("spool-")
	if err != nil {
		return nil, err
	}
	defer r.store.fsys.RemoveAll(dir)
	return r.store.fsys.OpenFile(filepath.Join(dir, "spool"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Close releases what the repository holds. Unpublished work is dropped.
func (r *Repository) Close() error { return r.store.Close() }
