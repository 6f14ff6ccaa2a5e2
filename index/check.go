package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/zeebo/blake3"
)

// errSchema says that an index is of another version of the program.
var errSchema = errors.New("another schema")

// errOutdated says that an index is older than the checkpoint that the log begins
// with.
var errOutdated = errors.New("the log does not go back so far")

// ErrBeyondLog says that a sound index of the repository was made of more records than the
// log has: records are missing at its end.
var ErrBeyondLog = errors.New("it goes beyond the log")

// ErrOtherEnd says that a sealed index was made with another record than the one that
// the log ends with: one of the two was replaced. Only the index knows what the other
// record said, so it stays.
var ErrOtherEnd = errors.New("the log ends with another record than it was made with")

// errOtherLog says that a sealed index was made with another record than one in the midst
// of the log.
var errOtherLog = errors.New("it is of another log")

// Check verifies every sealed index of a repository as Open does, and reports
// each that must not be used, with the reason. It changes nothing. An index of
// another version of the program is no damage.
func Check(r *archive.Repository, damaged func(number uint64, err error)) error {
	trusted, err := ownersOf(r.Dir())
	if err != nil {
		return err
	}
	if info, err := os.Stat(r.IndexDir()); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is no directory: move it away", r.IndexDir())
	}
	p := &opener{r: r, owners: trusted, verified: newVerified(nil)}
	numbers, err := p.list() // before the end of the log is looked up, as in try
	if err != nil {
		return err
	}
	last, err := r.Last()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		_, err := p.verify(n, last)
		if err == nil || errors.Is(err, errSchema) || errors.Is(err, errOutdated) {
			continue
		}
		if starved(err) {
			return fmt.Errorf("index %d: %w", n, err)
		}
		if _, gone := os.Lstat(p.dir(n)); !errors.Is(gone, fs.ErrNotExist) {
			damaged(n, err)
		}
	}
	return nil
}

// RepositoryID returns the id that the newest sealed index in dir, the directory of a
// repository's indexes, has of its repository, "" where no index has one that can be believed. It is for
// a repository that has lost its own note of it.
func RepositoryID(dir string) (string, error) {
	trusted, err := ownersOf(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	numbers, err := listIn(dir)
	if err != nil {
		return "", err
	}
	for _, n := range numbers {
		if s, err := readSeal(filepath.Join(dir, dirName(n), sealName), trusted); err == nil {
			return s.Repository, nil
		}
	}
	return "", nil
}

// Digest returns a digest of everything that the index can be asked about the
// generations that were not forgotten. It is a function of the log alone: two
// indexes of one log have the same, however they came about. It reads all of the
// index.
func (d *DB) Digest() (archive.Hash, error) {
	h := blake3.New()
	if d.number == 0 {
		return archive.Hash(h.Sum(nil)), nil
	}
	s, err := newSieve(d.tables, d.number, noGrace)
	if err != nil {
		return archive.Hash{}, err
	}
	var lengths [20]byte
	c := newCursor(d.tables, d.number, nil, scanOptions{allVersions: true})
	var last []byte
	err = copyKeys(c, s, func(key []byte, v version) error {
		if key[0] == spaceContent && bytes.Equal(key, last) {
			return nil // another place, which is not for good
		}
		last = append(last[:0], key...)
		binary.BigEndian.PutUint64(lengths[:], uint64(len(key)))
		binary.BigEndian.PutUint64(lengths[8:], v.at)
		binary.BigEndian.PutUint32(lengths[16:], uint32(len(v.sealed)))
		h.Write(lengths[:])
		h.Write(key)
		h.Write(v.sealed)
		return nil
	})
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return archive.Hash(h.Sum(nil)), err
}

// noGrace makes a sieve drop what only forgotten generations need, whenever
// that was.
const noGrace = time.Duration(-math.MaxInt64)

// Places calls use with every content that the log named and where it lies
// now, in the order of their hashes.
func (d *DB) Places(use func(archive.Hash, Place) error) error {
	return scan(d.tables, d.number, []byte{spaceContent}, func(key, value []byte) error {
		p, err := d.place(value)
		if errors.Is(err, errPartGone) {
			return nil
		}
		if err != nil {
			return err
		}
		return use(archive.Hash(key[1:]), p)
	})
}
