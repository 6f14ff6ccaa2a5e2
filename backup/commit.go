package backup

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/backupfs/backupfs/archive"
)

// commitRecord commits a draft behind the record before, which must still be the one
// that the index was derived from, and returns the stored bytes of the record. The error
// wraps fs.ErrExist where its number is taken. Another one says so where the record is
// there all the same.
func commitRecord(repo *archive.Repository, draft *archive.RecordDraft, h archive.Header) (stored int64, err error) {
	if h.Number > 1 {
		before, err := repo.RecordDigest(h.Number - 1)
		if err != nil {
			return 0, err
		}
		if before != h.Previous {
			return 0, fmt.Errorf("log record %d was damaged, or replaced, since it was read: `mkbackup check` says more", h.Number-1)
		}
	}
	return publishRecord(repo, draft, h)
}

// publishRecord is commitRecord whatever the record before is.
func publishRecord(repo *archive.Repository, draft *archive.RecordDraft, h archive.Header) (stored int64, err error) {
	digest, stored, err := draft.Commit(h)
	if err == nil {
		return stored, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return 0, nevertheless(repo, h, digest, err)
	}
	if object, openErr := repo.Store().Open(archive.RecordStoreName(h.Number)); openErr == nil { // a listing may be an old one
		object.Close()
		return 0, err
	}
	// Who lost the number reads the log and tries the next one, which would not end
	// where what has the name is no record.
	last, listErr := repo.Last()
	if listErr != nil {
		return 0, listErr
	}
	if last < h.Number {
		return 0, fmt.Errorf("log record %d: what has its name in log/ is not a regular file: remove it", h.Number)
	}
	return 0, err
}

// nevertheless returns the error of a commit, which says so where the record is there all
// the same: its directory could not be synced. Whoever reads the log finds it, but a crash
// may take it away. The next record that is made settles it, too.
func nevertheless(repo *archive.Repository, h archive.Header, digest archive.Digest, err error) error {
	if there, readErr := repo.RecordDigest(h.Number); readErr != nil || there != digest {
		return err
	}
	what := fmt.Sprintf("log record %d", h.Number)
	if h.Kind == archive.KindGeneration {
		what = "generation " + generationName(h.Source, h.Name)
	}
	return fmt.Errorf("%s is committed nevertheless, but a crash of the machine may take it away again until a `mkbackup create` has ended well: %w", what, err)
}
