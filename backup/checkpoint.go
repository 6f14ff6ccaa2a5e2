package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// A checkpoint is made when it is at most so large, as a share of the log; where all
// dead bytes are to be reclaimed, the other share. So the log is rewritten when two
// thirds of it are of no use: a byte is copied for two that are freed, at most.
const (
	checkpointShare = 1. / 3
	tightestShare   = 0.99
)

// leastContent is what a content takes in a checkpoint at least, in stored bytes: its
// hash, where it lies and where it is needed, does not compress.
const leastContent = 2 * 32

// shorten makes the log shorter if that is worth it. It comes behind the deletion of
// parts, so that a checkpoint need not remember the removed ones.
func (c *compaction) shorten() error {
	lock, err := c.repo.LockParts()
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := c.reopen(); err != nil {
		return err
	}
	if err := c.checkpoint(); err != nil || c.summary.Checkpoint == 0 {
		return err
	}
	c.options.hooks.reach("before log sweep")
	lock.Release()
	swept, err := sweepAfter(c.repo, c.db, c.notef, c.options.hooks)
	c.summary.Records = swept.Records
	return err
}

// checkpoint makes a checkpoint if it is small enough. Where another run commits
// meanwhile, a later one does this.
func (c *compaction) checkpoint() error {
	limit, err := c.checkpointLimit()
	if err != nil || limit == 0 {
		return err
	}
	if c.over() {
		c.summary.Limited = true
		return nil
	}
	if err := c.readLog(); err != nil || c.summary.DamagedRecords > 0 {
		return err
	}
	number, stored, err := commitCheckpoint(c.ctx, c.repo, c.db, checkpointOptions{limit: limit, program: c.options.Program, hooks: c.options.hooks})
	if errors.Is(err, fs.ErrExist) {
		c.notef("the log was not made shorter: another run committed meanwhile")
		return nil
	}
	if err != nil || number == 0 {
		return err
	}
	c.summary.LogBytes += stored
	c.summary.Checkpoint = number
	c.options.hooks.reach("checkpoint committed")
	return c.follow(number)
}

// readLog reads the records that a checkpoint would make needless, and reports those that
// are damaged: the index knows what they said, but that a disk rots must not be hidden.
func (c *compaction) readLog() error {
	first := max(c.db.Begins(), 1)
	var before archive.Digest // of the record before
	for number := first; number <= c.db.Number(); number++ {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		h, digest, err := c.repo.ReadRecord(number)
		switch {
		case archive.IsInconclusive(err):
			return err
		case err == nil && before != (archive.Digest{}) && h.Previous != before:
			err = fmt.Errorf("log record %d: it, or the record before it, was replaced", number)
		case err == nil && number == c.db.Number() && digest != c.db.RecordDigest():
			err = fmt.Errorf("log record %d: it was replaced", number)
		}
		before = digest
		if err != nil {
			c.summary.DamagedRecords++
			c.problem(err)
		}
	}
	return nil
}

type checkpointOptions struct {
	limit   int64 // stored bytes below which it is committed
	program string
	repairs bool // the records before it may be damaged
	hooks   hooks
}

// commitCheckpoint commits a record that says all that those before it say of the
// generations that were not forgotten, if it is small enough; number is 0 where it is not.
// The index that is derived from it alone must say the same as db, that of the whole log:
// only then it is committed. The caller holds a lock of the parts. The error wraps
// fs.ErrExist where another run commits meanwhile.
func commitCheckpoint(ctx context.Context, repo *archive.Repository, db *index.DB, o checkpointOptions) (number uint64, stored int64, err error) {
	draft, err := repo.NewRecord()
	if err != nil {
		return 0, 0, err
	}
	defer draft.Discard()
	err = writeState(ctx, repo, db, draft, o.limit)
	if errors.Is(err, errTooLarge) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("make a checkpoint: %w", err)
	}
	h := archive.Header{Kind: archive.KindCheckpoint, Number: db.Number() + 1, Time: o.hooks.now().UTC(),
		Previous: db.RecordDigest(), Program: o.program}
	if stored, err := draft.Stored(h); err != nil || stored >= o.limit {
		return 0, 0, err
	}
	if err := verifyCheckpoint(ctx, repo, db, draft, h); err != nil {
		return 0, 0, fmt.Errorf("make a checkpoint: nothing was changed: %w", err)
	}
	o.hooks.reach("before checkpoint")
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	commit := commitRecord
	if o.repairs {
		commit = publishRecord
	}
	stored, err = commit(repo, draft, h)
	return h.Number, stored, err
}

// checkpointLimit returns the stored bytes below which a checkpoint is worth it, 0
// where none can be: all generations there ever were are there, the log has hardly
// grown since the last one, or most of it is needed.
func (c *compaction) checkpointLimit() (int64, error) {
	stored, last := int64(0), int64(0)
	for object, err := range c.repo.Store().List("log/") {
		if err != nil {
			return 0, fmt.Errorf("list the log: %w", err)
		}
		stored += object.Stored
		if object.Name == archive.RecordStoreName(c.db.Begins()) {
			last = object.Stored
		}
	}
	generations, err := c.db.Generations()
	if err != nil || len(generations) == 0 || uint64(len(generations)) == c.db.Number() {
		return 0, err
	}
	if c.options.MaxDead == 0 {
		return int64(float64(stored) * tightestShare), nil
	}
	limit := int64(float64(stored) * checkpointShare)
	if last > limit || c.usage.index.Live*leastContent > limit {
		return 0, nil
	}
	return limit, nil
}

// errTooLarge says that a checkpoint is not worth it.
var errTooLarge = errors.New("it would be too large")

// writeState writes the lines of a checkpoint. The error is errTooLarge as soon as so many
// stored bytes are reached.
func writeState(ctx context.Context, repo *archive.Repository, db *index.DB, draft *archive.RecordDraft, limit int64) error {
	sweep := &sweeper{repo: repo}
	err := sweep.each(db, func(part archive.Digest, _ int64) error { return draft.Add(archive.Line{Removed: &part}) })
	if err != nil {
		return err
	}
	lines := 0
	return db.Checkpoint(func(l archive.Line) error {
		if lines++; lines%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if written, err := draft.Written(); err != nil || written >= limit {
				return cmp.Or(err, errTooLarge)
			}
		}
		return draft.Add(l)
	})
}

func verifyCheckpoint(ctx context.Context, repo *archive.Repository, db *index.DB, draft *archive.RecordDraft, h archive.Header) error {
	record, err := draft.Read(h)
	if err != nil {
		return err
	}
	defer record.Close()
	return db.VerifyCheckpoint(ctx, repo, record)
}
