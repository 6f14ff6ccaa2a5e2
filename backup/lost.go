package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// listParts compares the parts that are there with those that the index names. It
// returns the ones that no record names, and reports in lost those that are missing.
func (c *creation) listParts() (unnamed []archive.Digest, err error) {
	there := make(map[archive.Digest]bool) // of those that a record names: whether they are
	if err := c.db.Parts(func(p archive.Part) bool {
		there[p.Name] = false
		return true
	}); err != nil {
		return nil, err
	}
	if err := c.db.Removals(func(part archive.Digest) error { // what is left of them is about to be deleted
		there[part] = true
		return nil
	}); err != nil {
		return nil, err
	}
	for stored, err := range c.repo.Store().Names("parts/") {
		if err != nil {
			return nil, fmt.Errorf("list the parts: %w", err)
		}
		name, ok := archive.ParsePartStoreName(stored)
		if !ok {
			continue
		}
		if _, named := there[name]; !named {
			unnamed = append(unnamed, name)
		}
		there[name] = true
	}
	c.lost = make(map[archive.Digest]bool)
	for name := range there {
		if there[name] {
			continue
		}
		if missing, err := c.isMissing(name); err != nil {
			return nil, err
		} else if missing {
			c.lost[name] = true
		}
	}
	return unnamed, c.reportLost()
}

// countMissing reports the records that the index was derived from and that are missing.
func (c *creation) countMissing() error {
	missing, err := MissingRecords(c.repo, c.db)
	for _, number := range missing {
		c.lostRecords++
		c.damagef("log record %d is missing: only the index still knows what it said; `mkbackup check --repair` writes that to the log again", number)
	}
	return err
}

// MissingRecords returns the numbers of the records that the index was derived from and
// that the log lacks, but for those that a later checkpoint stands for. No record is read.
func MissingRecords(repo *archive.Repository, db *index.DB) (missing []uint64, err error) {
	records, err := repo.Records()
	if err != nil {
		return nil, err
	}
	first := max(db.Begins(), 1)
	if len(records) > 0 && records[0] > first {
		first = max(first, repo.Checkpoint(records[:1]))
	}
	for number := first; number <= db.Number(); number++ {
		if _, there := slices.BinarySearch(records, number); there {
			continue
		}
		_, err := repo.RecordDigest(number) // of a network file system the listing may be an old one
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, number)
		case err != nil:
			return nil, err
		}
	}
	return missing, nil
}

// reportLost names the parts that are missing and that generations need, the first
// maxProblems of them, and counts them.
func (c *creation) reportLost() error {
	if len(c.lost) == 0 {
		return nil
	}
	needed := make(map[archive.Digest]bool)
	_, err := c.db.Live(func(p archive.Placement, need index.Need, again bool) error {
		if need > 0 && !again && c.lost[p.Part] {
			needed[p.Part] = true
		}
		return nil
	})
	if errors.Is(err, index.ErrDamaged) { // it lacks more than these parts
		needed, err = c.lost, nil
	}
	if err != nil {
		return err
	}
	if needless := len(c.lost) - len(needed); needless > 0 {
		c.notef("parts that no generation needs any more are missing (%d): `mkbackup compact` forgets them", needless)
	}
	lost := slices.SortedFunc(maps.Keys(needed), func(a, b archive.Digest) int { return bytes.Compare(a[:], b[:]) })
	c.lostParts = int64(len(lost))
	for _, name := range lost[:min(len(lost), maxProblems)] {
		c.damagef("part %s is missing: what lay in it is stored again where the source still has it", name)
	}
	if more := len(lost) - maxProblems; more > 0 {
		c.damagef("%d more parts are missing", more)
	}
	return nil
}

// isMissing reports whether a part is not there. A listing does not prove that: of a
// network file system it may be an old one.
func (c *creation) isMissing(part archive.Digest) (bool, error) {
	object, err := c.repo.Store().Open(archive.PartStoreName(part))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, object.Close()
}

// adopt takes over the parts that no record names: those which an interrupted
// run finished. What lies in them is not stored again.
func (c *creation) adopt(unnamed []archive.Digest) error {
	adopted := 0
	for _, name := range unnamed {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		part, err := archive.ScanPart(c.repo.Store(), name)
		if err != nil {
			c.notef("a part that no generation names cannot be used: %v", err)
			continue
		}
		if err := c.repo.Store().Settle(archive.PartStoreName(name)); err != nil {
			return err
		}
		if err := c.addPart(part); err != nil {
			return err
		}
		adopted++
	}
	if adopted > 0 {
		c.notef("%d finished parts of a run that was interrupted, or is under way, are used", adopted)
	}
	return nil
}
