package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// CompactOptions say how much Compact reclaims.
type CompactOptions struct {
	MaxDead   float64       // share of the stored bytes that may stay dead; 0 reclaims all
	Limit     int64         // stored bytes to copy after which no part is begun; 0: no limit
	TimeLimit time.Duration // after which no batch of parts is begun; 0: no limit
	DryRun    bool          // find out what would be done; write nothing
	Unplaced  bool          // put all survivors into the same parts, however long they may live; to measure what placement gains
	Program   string        // name and version, for the log
	Problem   func(err error)
	Note      func(text string)
	Progress  *CompactProgress // updated during the run; nil means nobody looks

	hooks hooks
}

// CompactProgress tells how far a run is. It is safe for concurrent use.
type CompactProgress struct {
	done, total atomic.Int64
}

// Bytes returns the stored bytes of the parts that are done, and of all that are
// to be compacted (0: not known yet).
func (p *CompactProgress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

// CompactSummary is the outcome of Compact. Bytes are stored bytes; dead ones are
// estimated.
type CompactSummary struct {
	Parts          int     `json:"parts"` // before
	StoredBytes    int64   `json:"stored_bytes"`
	DeadBytes      int64   `json:"dead_bytes"`
	Removed        int     `json:"removed_parts"`
	RemovedBytes   int64   `json:"removed_bytes"`
	WholeParts     int     `json:"whole_parts"` // of the removed ones, those of which nothing was needed
	New            int     `json:"new_parts"`
	NewBytes       int64   `json:"new_bytes"`
	VerbatimBytes  int64   `json:"verbatim_bytes"`   // of frames that were copied as they are
	DeadAfter      int64   `json:"dead_bytes_after"` // that stay
	LogBytes       int64   `json:"log_bytes"`        // of new log records
	Checkpoint     uint64  `json:"checkpoint"`       // the record that makes those before it needless; 0: none was made
	Damaged        int     `json:"damaged_parts"`    // that stay because they are damaged, each reported
	DamagedRecords int     `json:"damaged_records"`  // of the log, each reported: it was not made shorter
	Limited        bool    `json:"limited"`          // a limit ended the run early
	Seconds        float64 `json:"seconds"`
	Swept
}

// compaction is one run of Compact.
type compaction struct {
	ctx     context.Context
	repo    *archive.Repository
	options CompactOptions
	started time.Time
	db      *index.DB
	usage   *usage
	changed bool                    // the log has records that usage does not know
	damaged map[archive.Digest]bool // parts that stay
	copied  int64                   // stored bytes, as they were
	summary CompactSummary
}

// Compact reclaims the space of contents that no generation needs: it copies what
// is needed of the parts where that is worth most into new ones, and removes those
// from the repository. What will be of no use at the same time goes into the same
// new parts. Everything copied is verified. Every few new parts are committed, so
// that whatever ends the run, what was done stays done. The files
// of removed parts are deleted as soon as no other run may rely on them.
//
// Parts with damage are reported and stay; Summary.Damaged counts them. Beside an error the
// summary tells what was done before it.
func Compact(ctx context.Context, repo *archive.Repository, o CompactOptions) (CompactSummary, error) {
	if o.Progress == nil {
		o.Progress = new(CompactProgress)
	}
	c := &compaction{ctx: ctx, repo: repo, options: o, started: time.Now(), damaged: make(map[archive.Digest]bool)}
	err := c.run()
	c.summary.Seconds = time.Since(c.started).Seconds()
	return c.summary, err
}

func (c *compaction) run() error {
	lock := &archive.Lock{}
	if !c.options.DryRun {
		var err error
		if lock, err = c.repo.LockParts(); err != nil {
			return err
		}
	}
	defer lock.Release()
	if err := c.reopen(); err != nil {
		return err
	}
	defer func() { _ = c.db.Close() }() // of what was only read
	c.options.hooks.reach("index opened")
	if err := c.measure(); err != nil {
		return err
	}
	c.summary.Parts, c.summary.StoredBytes, c.summary.DeadBytes = len(c.usage.parts), c.usage.stored, c.usage.dead
	if c.options.DryRun {
		c.dryRun()
		return nil
	}
	if err := c.compact(); err != nil {
		if c.summary.Removed == 0 {
			return err
		}
		return errors.Join(err, c.sweep(lock)) // on a full disk the next run may need the room
	}
	if c.summary.Removed > 0 {
		if err := c.conclude(); err != nil {
			return err
		}
	}
	c.summary.DeadAfter = c.usage.dead
	c.options.hooks.reach("before sweep")
	if err := c.sweep(lock); err != nil || c.summary.Limited || c.options.hooks.whole {
		return err
	}
	return c.shorten()
}

// sweep gives the lock of the parts back, and deletes the files of removed ones.
func (c *compaction) sweep(lock *archive.Lock) (err error) {
	lock.Release()
	c.summary.Swept, err = sweepAfter(c.repo, c.db, c.notef, c.options.hooks)
	return err
}

// dryRun puts what would be done into the summary.
func (c *compaction) dryRun() {
	c.summary.DeadAfter = c.usage.dead
	for _, p := range c.usage.plan(c.options.MaxDead) {
		if !p.wholly() && c.over() {
			c.summary.Limited = true
			return
		}
		c.copied += p.live
		c.summary.Removed++
		c.summary.RemovedBytes += p.Stored
		c.summary.NewBytes += p.live
		c.summary.DeadAfter -= p.dead
		if p.wholly() {
			c.summary.WholeParts++
		}
	}
}

func (c *compaction) reopen() error {
	db, err := openWhole(c.ctx, c.repo, c.notef)
	if err != nil {
		return err
	}
	if c.db != nil {
		_ = c.db.Close() // of what was only read
	}
	c.db = db
	return nil
}

func (c *compaction) measure() (err error) {
	var damages []error
	c.usage, err = measure(c.repo, c.db, func(err error) { damages = append(damages, err) })
	if err != nil {
		return err
	}
	if c.options.DryRun && slices.ContainsFunc(damages, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }) {
		// It has no lock: another compaction may have deleted the parts that are missing.
		number := c.db.Number()
		if err := c.reopen(); err != nil {
			return err
		}
		if c.db.Number() > number {
			return c.measure()
		}
	}
	for _, err := range damages {
		var damage *archive.DamageError
		errors.As(err, &damage)
		c.keepDamaged(damage.Part, err)
	}
	for _, p := range c.usage.parts {
		p.bad = p.bad || c.damaged[p.Name]
	}
	c.changed = false
	return nil
}

// keepDamaged reports a part that stays.
func (c *compaction) keepDamaged(part archive.Digest, err error) {
	if c.damaged[part] {
		return
	}
	c.damaged[part] = true
	c.summary.Damaged++
	c.problem(err)
}

func (c *compaction) problem(err error) {
	if c.options.Problem != nil {
		c.options.Problem(err)
	}
}

// compact works the plan off, batch by batch, and makes another plan whenever
// somebody else changed something.
func (c *compaction) compact() error {
	for {
		if err := c.secure(c.usage.doubtful()); err != nil {
			return err
		}
		plan := c.usage.plan(c.options.MaxDead)
		c.setTotal(plan)
		for len(plan) > 0 && !c.changed {
			n := c.batch(plan)
			if n == 0 {
				c.summary.Limited = true
				return nil
			}
			if err := c.secure(seconds(plan[:n])); err != nil {
				return err
			}
			if c.changed {
				break
			}
			if err := c.work(plan[:n]); err != nil {
				return err
			}
			plan = plan[n:]
		}
		if !c.changed {
			return nil
		}
		if err := c.measure(); err != nil {
			return err
		}
	}
}

func (c *compaction) setTotal(plan []*partUse) {
	total := c.options.Progress.done.Load()
	for _, p := range plan {
		total += p.Stored
	}
	c.options.Progress.total.Store(total)
}

// over reports whether a limit was reached.
func (c *compaction) over() bool {
	return c.options.Limit > 0 && c.copied >= c.options.Limit ||
		c.options.TimeLimit > 0 && time.Since(c.started) >= c.options.TimeLimit
}

// batchParts is how many new parts the parts of a batch fill: enough that each
// group of contents fills about one. An interrupted run loses no more than that.
const batchParts = 8

// batch returns how many parts of the plan come next: all of which nothing is
// needed, or as many as fill some new parts, or as few as have seconds of no more than
// that; 0 where a limit was reached.
func (c *compaction) batch(plan []*partUse) (n int) {
	for n < len(plan) && plan[n].wholly() && len(plan[n].seconds) == 0 {
		n++
	}
	if n > 0 || c.over() {
		return n
	}
	least := 1
	if plan[0].dead == 0 {
		least = 2 // alone it would be copied to itself
	}
	live, read := int64(0), int64(0)
	for ; n < len(plan) && plan[n].wholly() == plan[0].wholly(); n++ {
		live += plan[n].live
		for _, s := range plan[n].seconds {
			read += s.RawLen
		}
		if n >= least && (max(live, read) > batchParts*c.repo.PartSize || c.options.Limit > 0 && c.copied+live > c.options.Limit) {
			break
		}
	}
	return n
}

// survivors are what a batch has copied.
type survivors struct {
	sources   []*partUse                        // the parts that it makes needless
	copied    map[archive.Digest][]archive.Hash // what was copied of each of them
	rescued   bool                              // something was copied of a part that is damaged, and stays: it is in published
	published []archive.PublishedPart
	moved     map[archive.Hash]struct{} // contents of published
}

// whole makes sure that everything that is needed of the sources is in new parts.
func (s *survivors) whole() error {
	for _, p := range s.sources {
		if n := p.needed(); len(s.copied[p.Name]) != n {
			return fmt.Errorf("part %s: %d contents are needed, %d were copied", p.Name, n, len(s.copied[p.Name]))
		}
		for _, hash := range s.copied[p.Name] {
			if _, ok := s.moved[hash]; !ok {
				return fmt.Errorf("part %s: content %s was copied, but is in no new part", p.Name, hash)
			}
		}
	}
	return nil
}

// work copies what is needed of some parts and removes these.
func (c *compaction) work(parts []*partUse) error {
	s := &survivors{copied: make(map[archive.Digest][]archive.Hash), moved: make(map[archive.Hash]struct{})}
	if parts[0].wholly() {
		s.sources = parts
	} else if err := c.copy(parts, s); err != nil {
		return err
	}
	if err := s.whole(); err != nil {
		return fmt.Errorf("nothing of this was committed: %w", err)
	}
	return c.commit(s)
}

// needRange is a group of contents that go into the same new parts.
type needRange struct {
	first, last index.Need
}

// groups returns the groups of what is needed of some parts: the contents whose
// newest generation is the same will die with it, at the same time; those that are
// current stay together.
func (c *compaction) groups(parts []*partUse) (list []needRange) {
	if c.options.Unplaced {
		return []needRange{{1, math.MaxUint32}}
	}
	needs := make(map[index.Need]struct{})
	for _, p := range parts {
		for _, s := range p.spans {
			if s.live() {
				needs[s.need] = struct{}{}
			}
		}
	}
	for _, need := range slices.Sorted(maps.Keys(needs)) {
		list = append(list, needRange{need, need})
	}
	return list
}

// copy copies what is needed of some parts into new ones, one group after the
// other, so that it holds the memory of one packer.
func (c *compaction) copy(parts []*partUse, s *survivors) error {
	done, stored := c.options.Progress.done.Load(), int64(0)
	for _, p := range parts {
		stored += p.Stored
		c.copied += p.live
	}
	groups := c.groups(parts)
	for i, group := range groups {
		if err := c.copyGroup(parts, group, s); err != nil {
			return err
		}
		c.options.Progress.done.Store(done + stored*int64(i+1)/int64(len(groups)))
	}
	same := make(map[archive.Digest]bool) // of which everything was copied as it is, and nothing else: they are the new part
	for _, p := range s.published {
		same[p.Part.Name] = true
		for _, content := range p.Contents {
			s.moved[content.Hash] = struct{}{}
		}
	}
	for _, p := range parts {
		if !c.damaged[p.Name] && !same[p.Name] {
			s.sources = append(s.sources, p)
		}
	}
	c.options.hooks.reach("part published")
	return nil
}

// copyGroup copies a group into new parts of its own.
func (c *compaction) copyGroup(parts []*partUse, group needRange, s *survivors) error {
	// What is compressed anew may come out larger than before: no second part for
	// that. What survived is likely to stay, so it is worth more effort.
	o := archive.PackerOptions{PartStored: c.repo.PartSize + c.repo.PartSize/4, Level: archive.LevelBetter}
	packer := archive.NewPacker(c.repo.Store(), o, func(p archive.PublishedPart) error {
		s.published = append(s.published, p)
		return nil
	})
	for _, p := range parts {
		if err := c.copyPart(packer, p, p.offsets(group.first, group.last), s); err != nil {
			packer.Abort()
			return err
		}
	}
	return packer.Close()
}

// copyPart copies some contents of one part. Where it is damaged it stays, and
// what could be copied of it is safe in the new part.
func (c *compaction) copyPart(packer *archive.Packer, p *partUse, offsets []int64, s *survivors) error {
	if err := c.ctx.Err(); err != nil || len(offsets) == 0 {
		return err
	}
	copied, err := packer.Copy(p.Part, offsets)
	if err == nil {
		err = c.same(p.Part, copied.Contents)
	}
	c.summary.VerbatimBytes += copied.Verbatim
	var damage *archive.DamageError
	if errors.As(err, &damage) {
		c.keepDamaged(p.Name, err)
		s.rescued = s.rescued || len(copied.Contents) > 0
		return nil
	}
	if err != nil {
		return err
	}
	for _, content := range copied.Contents {
		s.copied[p.Name] = append(s.copied[p.Name], content.Hash)
	}
	return nil
}

// same makes sure that the contents copied from a part are those that the index
// says are there.
func (c *compaction) same(p archive.Part, contents []archive.Content) error {
	for _, content := range contents {
		place, err := c.db.Content(content.Hash)
		if err != nil && !errors.Is(err, index.ErrNotFound) {
			return err
		}
		if place.Part != p || place.RawOffset != content.RawOffset || place.RawLen != content.RawLen {
			return &archive.DamageError{Part: p.Name, Problem: fmt.Sprintf("at raw offset %d is the content %s, of which the log says otherwise", content.RawOffset, content.Hash)}
		}
	}
	return nil
}

// commit makes the record of a batch. Where somebody else took its number, what
// must not be removed any more is left out, and the next number is tried.
func (c *compaction) commit(s *survivors) error {
	for {
		if len(s.sources) == 0 && !s.rescued {
			return nil // others have done all of it, or nothing could be copied; a later run uses what was published
		}
		number := c.db.Number() + 1
		c.options.hooks.reach("before commit")
		if err := c.ctx.Err(); err != nil {
			return err
		}
		stored, err := c.commitAs(number, s)
		if err == nil {
			c.count(s, stored)
			return c.follow(number)
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		c.options.hooks.reach("commit lost")
		if err := c.reopen(); err != nil {
			return err
		}
		c.changed = true
		c.options.hooks.reach("index reopened")
		if err := c.validate(s); err != nil {
			return err
		}
	}
}

// follow brings the index up to the record that was just committed.
func (c *compaction) follow(number uint64) error {
	if err := c.reopen(); err != nil {
		return fmt.Errorf("record %d is committed, but the index could not be brought up to it: %w", number, err)
	}
	c.changed = c.changed || c.db.Number() != number
	return nil
}

func (c *compaction) commitAs(number uint64, s *survivors) (stored int64, err error) {
	draft, err := c.repo.NewRecord()
	if err != nil {
		return 0, err
	}
	defer draft.Discard()
	for _, p := range s.published {
		if err := draft.AddPart(p); err != nil {
			return 0, err
		}
	}
	for _, p := range s.sources {
		if err := draft.Add(archive.Line{Removed: &p.Name}); err != nil {
			return 0, err
		}
	}
	return commitRecord(c.repo, draft, archive.Header{Kind: archive.KindCompaction, Number: number,
		Time: c.options.hooks.now().UTC(), Previous: c.db.RecordDigest(), Program: c.options.Program})
}

func (c *compaction) count(s *survivors, recordStored int64) {
	c.summary.LogBytes += recordStored
	for _, p := range s.published {
		c.summary.New++
		c.summary.NewBytes += p.Part.Stored
	}
	for _, p := range s.sources {
		c.summary.Removed++
		c.summary.RemovedBytes += p.Stored
		c.usage.dead -= p.dead
		if p.wholly() {
			c.summary.WholeParts++
			c.options.Progress.done.Add(p.Stored)
		}
	}
}

// validate takes out of the batch every part that others have removed, and every
// one with a content that generations need now and that was not copied.
func (c *compaction) validate(s *survivors) error {
	if c.options.hooks.blind {
		return nil
	}
	needed := make(map[archive.Digest]bool)
	there := make(map[archive.Digest]bool)
	if err := c.db.Parts(func(p archive.Part) bool {
		there[p.Name] = true
		return true
	}); err != nil {
		return err
	}
	if _, err := c.db.Live(func(p archive.Placement, need index.Need, again bool) error {
		if _, moved := s.moved[p.Hash]; need > 0 && !again && !moved {
			needed[p.Part] = true
		}
		return nil
	}); err != nil {
		return err
	}
	var left []*partUse
	for _, p := range s.sources {
		if there[p.Name] && !needed[p.Name] {
			left = append(left, p)
		}
	}
	s.sources = left
	return nil
}

// shrinkShare is the share of an index that must be of no use before it is
// rewritten.
const shrinkShare = 0.3

// conclude makes sure, before any file is deleted, that everything is where the
// index says, and rewrites the index if much of it is of no use any more.
func (c *compaction) conclude() error {
	if err := c.measure(); err != nil {
		return fmt.Errorf("after the compaction, no file was deleted: %w", err)
	}
	u := c.usage.index
	useless := u.Gone + u.DeadInodes
	if float64(useless) < shrinkShare*float64(u.Gone+u.Contents+u.Inodes) {
		return nil
	}
	db, err := index.Shrink(c.repo, index.Options{Log: c.notef})
	if err != nil {
		c.notef("the index was not made smaller: %v", err)
		return nil
	}
	_ = c.db.Close() // of what was only read
	c.db = db
	return nil
}

func (c *compaction) notef(format string, a ...any) {
	if c.options.Note != nil {
		c.options.Note(fmt.Sprintf(format, a...))
	}
}
