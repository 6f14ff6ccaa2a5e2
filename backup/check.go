package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// CheckOptions says what Check reports, and to whom.
type CheckOptions struct {
	Damage func(text string) // called for each damage, with what is damaged; nil means nobody
	Note   func(text string) // called for what is worth to know but no damage; nil means nobody
}

// CheckResult says what was checked and how much of it is damaged.
type CheckResult struct {
	Records     uint64 `json:"records"`
	Generations int    `json:"generations"`
	Parts       int    `json:"parts"`
	StoredBytes int64  `json:"stored_bytes"`    // of the parts
	Unnamed     int    `json:"unnamed_parts"`   // parts that no record names
	Undeleted   int    `json:"undeleted_parts"` // files of parts that a compaction removed
	Damages     int    `json:"damages"`
}

type checking struct {
	ctx     context.Context
	repo    *archive.Repository
	options CheckOptions
	result  CheckResult
}

// Check verifies the structure of a repository: that the log is whole and a
// chain, that the index is the log's, that every part named is there with its
// size and its tail. Damage is reported and counted; an error means that the
// check could not be done.
func Check(ctx context.Context, repo *archive.Repository, o CheckOptions) (CheckResult, error) {
	c := &checking{ctx: ctx, repo: repo, options: o}
	whole, err := c.log()
	if err == nil && whole {
		err = c.indexAndParts()
	}
	return c.result, err
}

func (c *checking) damagef(format string, a ...any) {
	c.result.Damages++
	if c.options.Damage != nil {
		c.options.Damage(fmt.Sprintf(format, a...))
	}
}

func (c *checking) notef(format string, a ...any) {
	if c.options.Note != nil {
		c.options.Note(fmt.Sprintf(format, a...))
	}
}

// log reads every record and reports whether all are whole.
func (c *checking) log() (whole bool, err error) {
	last, err := c.repo.Last()
	if err != nil {
		return false, err
	}
	c.result.Records = last
	previous := archive.Digest{}
	for n := uint64(1); n <= last; n++ {
		if err := c.ctx.Err(); err != nil {
			return false, err
		}
		if previous, err = c.record(n, previous); err != nil {
			c.damagef("%v", err)
		}
	}
	return c.result.Damages == 0, nil
}

// record reads one record to its end and returns its digest, or else the digest
// of the bytes that are there.
func (c *checking) record(number uint64, previous archive.Digest) (archive.Digest, error) {
	digest, err := c.repo.RecordDigest(number)
	if errors.Is(err, fs.ErrNotExist) {
		return archive.Digest{}, fmt.Errorf("log record %d is missing: the generations from it on cannot be read", number)
	}
	if err != nil {
		return archive.Digest{}, err
	}
	r, err := c.repo.OpenRecord(number)
	if err != nil {
		return digest, err
	}
	defer r.Close()
	if found := r.Header().Previous; found != previous && previous != (archive.Digest{}) || number == 1 && found != previous {
		return digest, fmt.Errorf("log record %d follows a record %s, but record %d is %s: one of the two was replaced", number, found, number-1, previous)
	}
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) {
		return digest, err
	}
	return digest, nil
}

func (c *checking) indexAndParts() error {
	db, err := index.Open(c.repo, index.Options{Log: c.damagef})
	if err != nil {
		return err
	}
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		return err
	}
	c.result.Generations = len(gens)
	named := make(map[archive.Digest]struct{})
	if err := db.Parts(func(p archive.Part) bool {
		named[p.Name] = struct{}{}
		c.part(p)
		return c.ctx.Err() == nil
	}); err != nil {
		return err
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	removed := make(map[archive.Digest]struct{})
	if err := db.Removals(func(part archive.Digest) error {
		removed[part] = struct{}{}
		return nil
	}); err != nil {
		return err
	}
	return c.unnamed(named, removed)
}

func (c *checking) part(p archive.Part) {
	c.result.Parts++
	c.result.StoredBytes += p.Stored
	if err := archive.VerifyTail(c.repo.Store(), p); err != nil {
		c.damagef("%v", err)
	}
}

// unnamed counts the parts that no record names: another run has not committed
// yet, or was interrupted. Those that were removed are counted apart.
func (c *checking) unnamed(named, removed map[archive.Digest]struct{}) error {
	for stored, err := range c.repo.Store().Names("parts/") {
		if err != nil {
			return fmt.Errorf("list the parts: %w", err)
		}
		name, ok := archive.ParsePartStoreName(stored)
		if !ok {
			c.notef("%s is not a part's name: nothing of this program made it", stored)
		} else if _, ok := removed[name]; ok {
			c.result.Undeleted++
		} else if _, ok := named[name]; !ok {
			c.result.Unnamed++
		}
	}
	if c.result.Unnamed > 0 {
		c.notef("%d parts are named by no record: a run is under way, or was interrupted; the next run uses them", c.result.Unnamed)
	}
	if c.result.Undeleted > 0 {
		c.notef("%d parts were removed by a compaction while another run was under way; the next run deletes their files", c.result.Undeleted)
	}
	return nil
}
