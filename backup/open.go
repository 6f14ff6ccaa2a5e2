package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// lostEnd is what indexes know of records that the log has lost from its end.
type lostEnd struct {
	records uint64 // how many
	text    string // says so
}

// openNewest opens the index of a repository, and tells what the log has lost.
func openNewest(ctx context.Context, repo *archive.Repository, notef func(string, ...any)) (db *index.DB, lost lostEnd, err error) {
	beyond, other := uint64(0), uint64(0)
	damaged := func(number uint64, err error) {
		switch {
		case errors.Is(err, index.ErrBeyondLog):
			beyond = max(beyond, number)
		case errors.Is(err, index.ErrOtherEnd):
			other = number
		default:
			notef("index %d is not used: %v", number, err)
		}
	}
	db, err = index.Open(repo, index.Options{Log: notef, Interrupted: ctx.Err, Damaged: damaged})
	if err == nil && db.Number() == 0 { // no index was looked at
		err = index.Check(repo, damaged)
	}
	switch {
	case err != nil && db != nil:
		return nil, lost, errors.Join(err, db.Close())
	case err != nil:
		return nil, lost, err
	case beyond > db.Number():
		lost = lostEnd{beyond - db.Number(), fmt.Sprintf("an index was made with records up to %d, but the log ends with record %d: the last records are missing, and the generations they made", beyond, db.Number())}
	case other > 0 && other == db.Number():
		lost = lostEnd{1, otherEnd(other)}
	}
	return db, lost, nil
}

// otherEnd says that an index knows another last record than the log has.
func otherEnd(number uint64) string {
	return fmt.Sprintf("index %d was made with another record %d than the log has: one of the two was replaced", number, number)
}

// openWhole opens the index for a command that drops something, which it must not where
// the log has lost its last records, or all, or has another one in the place of the last: what they
// said is not known, and the next record would take the number of one that may still be found.
func openWhole(ctx context.Context, repo *archive.Repository, notef func(string, ...any)) (*index.DB, error) {
	db, lost, err := openNewest(ctx, repo, notef)
	if err != nil || lost.records == 0 {
		return db, err
	}
	_ = db.Close() // of what was only read
	return nil, fmt.Errorf("%s; nothing is dropped: `mkbackup check` says what to do", lost.text)
}
