package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/index"
)

// withIndex opens a repository and its index for a command that reads.
func withIndex(ctx context.Context, dir string, read func(db *index.DB) error) error {
	return withRepository(ctx, dir, func(_ *archive.Repository, db *index.DB) error { return read(db) })
}

// withRepository is withIndex for a command that reads more than the index. Where the
// newest record is damaged or the log has lost any, it shows what can be read, and exits as
// for damage. The context is that of withSignals.
func withRepository(ctx context.Context, dir string, read func(repo *archive.Repository, db *index.DB) error) error {
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer repo.Close()
	db, lost, err := openPartial(ctx, repo)
	if err != nil {
		return err
	}
	defer db.Close()
	defer endAtOnce(ctx, repo)()
	missing, err := backup.MissingRecords(repo, db)
	if err != nil {
		return err
	}
	switch err := read(repo, db); {
	case err != nil:
		return err
	case len(missing) > 0:
		return &exitError{exitDamage, fmt.Sprintf("the log lacks %s, the first is %d: this is what the index still knows of, and `mkbackup check --repair` writes it to the log again",
			plural(int64(len(missing)), "record"), missing[0])}
	case db.Problem() != nil:
		return &exitError{exitDamage, "the log is damaged, and this is what can be read: `mkbackup check` says what is lost, and what to do"}
	case lost:
		return &exitError{exitDamage, "the log has lost its last records, or has others in their place, and this is what can be read: `mkbackup check` says what to do"}
	}
	return nil
}

// openPartial opens what there is of an index, unless ctx ends, and reports whether an
// index has more records than the log, or another last one.
func openPartial(ctx context.Context, repo *archive.Repository) (db *index.DB, lost bool, err error) {
	log := func(format string, a ...any) {
		if ctx.Err() == nil { // what is said of an interrupt would be taken for damage
			notef(format, a...)
		}
	}
	damaged := func(number uint64, err error) {
		lost = lost || errors.Is(err, index.ErrBeyondLog) || errors.Is(err, index.ErrOtherEnd)
		log("index %d is not used: %v", number, err)
	}
	db, err = index.Open(repo, index.Options{Log: log, Damaged: damaged, Partial: true, Interrupted: ctx.Err})
	if err == nil && db.Number() == 0 { // no index was looked at
		err = index.Check(repo, damaged)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil && db != nil {
		err = errors.Join(err, db.Close())
	}
	return db, lost, err
}

// endAtOnce makes a signal end the program wherever it is, until stop is called: it
// only reads, and it may be waiting for whoever reads its output. It prints nothing, for
// which it may have to wait as well.
func endAtOnce(ctx context.Context, repo *archive.Repository) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = repo.Close() // removes what it had to add to the index, if anything
		os.Exit(exitCode(ctx, ctx.Err()))
	})
}

// findGeneration returns the generation that spec means, as index.Find understands it.
func findGeneration(db *index.DB, spec string) (index.Generation, error) {
	gens, err := db.Generations()
	if err != nil {
		return index.Generation{}, err
	}
	return index.Find(gens, spec)
}
