package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// Swept says what became of the files of parts that the log removed.
type Swept struct {
	Parts       int   `json:"deleted_parts"`
	StoredBytes int64 `json:"deleted_bytes"`
	Records     int   `json:"deleted_records"` // log records that a checkpoint made needless
	LaterParts  int   `json:"later_parts"`     // that are deleted once the run under way has ended
	LaterBytes  int64 `json:"later_bytes"`
}

// sweeper deletes the files of parts that the log removed and did not name again,
// and the log records before the newest checkpoint.
type sweeper struct {
	repo  *archive.Repository
	note  func(format string, a ...any)
	hooks hooks
	swept Swept
}

// sweepAfter deletes what it can, if the index db, which the caller closes, knows
// of a removal or a checkpoint since the last time. The caller must not hold the
// lock of the parts.
func sweepAfter(repo *archive.Repository, db *index.DB, note func(string, ...any), h hooks) (Swept, error) {
	s := &sweeper{repo: repo, note: note, hooks: h}
	needless, err := s.needless(db)
	if err != nil || db.LastRemoval() == s.done() && len(needless) == 0 {
		return s.swept, err
	}
	lock, err := repo.LockToDelete()
	switch {
	case err == nil:
		defer lock.Release()
	case !errors.Is(err, archive.ErrLocked):
		return s.swept, err
	case !h.unlocked:
		return s.swept, s.each(db, func(_ archive.Digest, stored int64) error {
			s.swept.LaterParts++
			s.swept.LaterBytes += stored
			return nil
		})
	}
	return s.swept, s.delete()
}

// delete is called under the lock: nobody writes who could rely on a part that
// the log as it is now does not name.
func (s *sweeper) delete() error {
	db, err := index.Open(s.repo, index.Options{Log: s.note})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := s.repo.SettleRecord(db.Number()); err != nil { // no part goes before the record that removes it is sure to stay
		return err
	}
	if err := s.needNothing(db); err != nil {
		return fmt.Errorf("no removed part was deleted: %w", err)
	}
	err = s.each(db, func(part archive.Digest, stored int64) error {
		s.hooks.reach("before unlink")
		name := archive.PartStoreName(part)
		if err := s.repo.Store().Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.swept.Parts++
		s.swept.StoredBytes += stored
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete removed parts: %w", err)
	}
	if err := s.settle(db); err != nil {
		return fmt.Errorf("delete removed parts: %w", err)
	}
	s.remember(db.LastRemoval())
	return s.deleteRecords(db)
}

// settle makes the removal of parts last, also of those that a run deleted which was killed
// before it came to that.
func (s *sweeper) settle(db *index.DB) error {
	removed := map[string]string{} // a name from each directory
	if err := db.Removals(func(part archive.Digest) error {
		name := archive.PartStoreName(part)
		removed[path.Dir(name)] = name
		return nil
	}); err != nil {
		return err
	}
	for _, name := range removed {
		if err := s.repo.Store().Settle(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// needNothing makes sure that generations need nothing of what parts were removed with:
// a removed part that is deleted by mistake is lost.
func (s *sweeper) needNothing(db *index.DB) error {
	if db.LastRemoval() == s.done() {
		return nil
	}
	_, err := db.Live(func(archive.Placement, index.Need, bool) error { return nil })
	return err
}

// needless returns the numbers of the records that are there although a checkpoint
// says all that they say.
func (s *sweeper) needless(db *index.DB) ([]uint64, error) {
	records, err := s.repo.Records()
	end, _ := slices.BinarySearch(records, db.Begins())
	return records[:end], err
}

// deleteRecords deletes what the newest checkpoint made needless, oldest first. Nobody
// can make a record of such a number again: every writer holds the lock of the parts
// from before it looks at the log. The checkpoint must be whole and on stable storage, as
// delete has seen to: nothing else says then which generations there are.
func (s *sweeper) deleteRecords(db *index.DB) error {
	needless, err := s.needless(db)
	if err != nil || len(needless) == 0 {
		return err
	}
	if err := s.readCheckpoint(db); err != nil {
		return fmt.Errorf("no log record was deleted: %w", err)
	}
	for _, number := range needless {
		s.hooks.reach("before record unlink")
		if err := s.repo.RemoveRecord(number); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete log records: %w", err)
		}
		s.swept.Records++
	}
	return nil
}

// readCheckpoint reads the checkpoint that the index was derived from to its end, and
// makes sure that it is still the one that the record behind it, or the index, follows.
func (s *sweeper) readCheckpoint(db *index.DB) error {
	number, want := db.Begins(), db.RecordDigest()
	if number < db.Number() {
		next, err := s.repo.RecordHeader(number + 1)
		if err != nil {
			return err
		}
		want = next.Previous
	}
	h, digest, err := s.repo.ReadRecord(number)
	if err == nil && (digest != want || h.Kind != archive.KindCheckpoint) {
		err = fmt.Errorf("log record %d is not the checkpoint that the index was derived from", number)
	}
	return err
}

// each calls use with every file of a removed part that is still there.
func (s *sweeper) each(db *index.DB, use func(part archive.Digest, stored int64) error) error {
	return db.Removals(func(part archive.Digest) error {
		object, err := s.repo.Store().Open(archive.PartStoreName(part))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		stored := object.Size()
		object.Close()
		return use(part, stored)
	})
}

// The number of the last record whose removed parts have no files any more lies
// beside the indexes. Without it every removed part is looked for once.
func (s *sweeper) place() string { return filepath.Join(s.repo.IndexDir(), "swept") }

func (s *sweeper) done() uint64 {
	text, err := archive.ReadSmallFile(s.place(), 32)
	if err != nil {
		return 0
	}
	number, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return 0
	}
	return number
}

func (s *sweeper) remember(number uint64) {
	f, err := s.repo.FS().OpenFile(s.place(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(strconv.AppendUint(nil, number, 10))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		s.note("removed parts are looked for again by the next run: %v", err)
	}
}
