package backup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// logFacts is what a check keeps of the log.
type logFacts struct {
	last      uint64
	whole     bool                            // nothing is missing or damaged so far
	digest    archive.Digest                  // of record last; zeros where it is not known
	headers   []archive.Header                // of the generations whose header could be read, by number
	forgotten map[uint64]bool                 // numbers of generations
	parts     map[archive.Digest]archive.Part // without those that were removed
	removed   map[archive.Digest]bool         // parts
}

// kept returns the generations that were not forgotten, without their trees.
func (l *logFacts) kept() []index.Generation {
	var list []index.Generation
	for _, h := range l.headers {
		if !l.forgotten[h.Number] {
			list = append(list, index.Generation{Number: h.Number, Source: h.Source, Name: h.Name, Time: h.Time.UTC()})
		}
	}
	return list
}

// recordFacts is what a check keeps of one record. A line that is repeated, which costs a
// record hardly a byte, is kept once.
type recordFacts struct {
	number  uint64
	header  archive.Header // Number 0: it could not be read
	digest  archive.Digest // of the bytes that are there; zeros where there are none
	forgets map[uint64]struct{}
	parts   map[archive.Digest]archive.Part
	removed map[archive.Digest]struct{}
	stated  []archive.Header // generations of a checkpoint
	err     error            // what is wrong with the record
}

// checkLog reads the whole log from the newest checkpoint on, each record once.
func (c *checking) checkLog() error {
	records, err := c.repo.Records()
	if err != nil {
		return err
	}
	stored := int64(0)
	for object, err := range c.repo.Store().List("log/") {
		if err != nil {
			return fmt.Errorf("list the log: %w", err)
		}
		stored += object.Stored
	}
	c.options.Progress.start("log", stored)
	c.log = logFacts{forgotten: map[uint64]bool{}, parts: map[archive.Digest]archive.Part{}, removed: map[archive.Digest]bool{}, whole: true}
	if len(records) == 0 {
		return nil
	}
	first, err := c.takeFirst(records)
	if err != nil {
		return err
	}
	err = c.readLog(first+1, records[len(records)-1])
	c.result.Records = c.log.last - first + 1
	return err
}

// takeFirst reads the record that the log begins with, and returns its number: that
// of the newest checkpoint that is whole, or of the first record. What is before a
// checkpoint is about to be deleted.
func (c *checking) takeFirst(records []uint64) (uint64, error) {
	damaged := uint64(0)
	for before := records; ; {
		number := c.repo.Checkpoint(before)
		if number == 0 {
			break
		}
		end, _ := slices.BinarySearch(before, number)
		if f := c.readRecord(number); f.err == nil {
			if end > 0 {
				c.notef("log records before the checkpoint %d are not needed any more (%d): the next run deletes them", number, end)
			}
			return number, c.takeRecord(&f)
		}
		before, damaged = before[:end], number
	}
	first := records[0]
	if first > 1 && first != damaged {
		now, err := c.repo.Records()
		if err != nil {
			return 0, err
		}
		if len(now) > 0 && now[0] > first { // a checkpoint was made since the log was listed
			return c.takeFirst(now)
		}
		c.result.DamagedRecords++
		c.log.whole = false
		c.damagef("%s, and no checkpoint can be read instead", missingRecords(1, first-1))
	}
	f := c.readRecord(first)
	return first, c.takeRecord(&f)
}

// readLog reads the records from first to last, several at a time, and takes
// what they say in their order.
func (c *checking) readLog(first, last uint64) error {
	workers := uint64(runtime.GOMAXPROCS(0))
	for batch := first; batch <= last; batch += workers {
		facts := make([]recordFacts, min(workers, last-batch+1))
		var wg sync.WaitGroup
		for i := range facts {
			wg.Go(func() { facts[i] = c.readRecord(batch + uint64(i)) })
		}
		wg.Wait()
		if err := c.ctx.Err(); err != nil {
			return err
		}
		for i := range facts {
			if err := c.takeRecord(&facts[i]); err != nil {
				return err
			}
			if c.log.last > facts[i].number { // a gap
				batch = c.log.last + 1 - workers
				break
			}
		}
	}
	return nil
}

// readRecord reads one record to its end. Only of a broken one the stored bytes
// are read a second time, for their digest.
func (c *checking) readRecord(number uint64) recordFacts {
	f := recordFacts{number: number, forgets: map[uint64]struct{}{}, parts: map[archive.Digest]archive.Part{}, removed: map[archive.Digest]struct{}{}}
	if f.err = c.readLines(&f); f.err == nil {
		return f
	}
	if digest, err := c.repo.RecordDigest(number); err == nil {
		f.digest = digest
	}
	return f
}

func (c *checking) readLines(f *recordFacts) error {
	r, err := c.repo.OpenRecord(f.number)
	if err != nil {
		return err
	}
	defer r.Close()
	f.header = r.Header()
	for lines := 0; ; lines++ {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			f.digest, err = r.Digest()
			return err
		}
		if err == nil && lines%4096 == 0 {
			err = c.ctx.Err()
		}
		if err != nil {
			return err
		}
		switch {
		case line.Part != nil:
			f.parts[line.Part.Name] = *line.Part
		case line.Forget != 0:
			f.forgets[line.Forget] = struct{}{}
		case line.Removed != nil:
			f.removed[*line.Removed] = struct{}{}
		case line.Generation != nil:
			if n := len(f.stated); n > 0 && line.Generation.Number <= f.stated[n-1].Number {
				return fmt.Errorf("log record %d: it states generation %d behind generation %d", f.number, line.Generation.Number, f.stated[n-1].Number)
			}
			f.stated = append(f.stated, *line.Generation)
		}
	}
}

// takeRecord checks that a record follows the one before, and adds what it says.
// The error is an inconclusive one, or the end of the context: nothing can be said about
// the record.
func (c *checking) takeRecord(f *recordFacts) error {
	follows, began := c.log.digest, c.log.last > 0
	c.log.last, c.log.digest = f.number, f.digest
	if f.header.Kind == archive.KindCheckpoint && f.err == nil {
		c.takeCheckpoint(f, began)
	}
	if f.header.Kind == archive.KindGeneration {
		c.log.headers = append(c.log.headers, f.header)
	}
	for number := range f.forgets {
		c.log.forgotten[number] = true
	}
	for name, p := range f.parts {
		c.log.parts[name] = p
		delete(c.log.removed, name)
	}
	for name := range f.removed {
		delete(c.log.parts, name)
		c.log.removed[name] = true
	}
	switch known := follows != (archive.Digest{}) || f.number == 1; {
	case f.err != nil && c.ctx.Err() != nil:
		return c.ctx.Err()
	case archive.IsInconclusive(f.err):
		return f.err
	case errors.Is(f.err, fs.ErrNotExist):
		return c.missing(f.number)
	case f.err != nil:
		c.log.whole = false
		c.result.DamagedRecords++
		c.damagef("%v", f.err)
	case known && f.header.Previous != follows:
		c.log.whole = false
		c.result.DamagedRecords++
		c.damagef("log record %d follows a record %s, but record %d is %s: one of the two was replaced", f.number, f.header.Previous, f.number-1, follows)
	}
	return nil
}

// takeCheckpoint takes what a checkpoint says for what is known of the log. What was
// read before, if anything, must be the same.
func (c *checking) takeCheckpoint(f *recordFacts, began bool) {
	before := c.log
	for name := range before.parts {
		if _, stays := f.parts[name]; !stays {
			c.log.removed[name] = true
		}
	}
	c.log.headers, c.log.forgotten, c.log.parts = f.stated, map[uint64]bool{}, f.parts
	if began && before.whole && (!slices.Equal(before.kept(), c.log.kept()) || !maps.Equal(before.parts, c.log.parts)) {
		c.result.DamagedRecords++
		c.damagef("log record %d, a checkpoint, does not say what the records before it say", f.number)
	}
}

// needlessNow reports whether a record is missing because a checkpoint was made, and
// the records before it deleted, since the log was listed.
func (c *checking) needlessNow(number uint64) (bool, error) {
	records, err := c.repo.Records()
	return err == nil && c.repo.Checkpoint(records) > number, err
}

// missing reports that a record is missing, and those behind it up to the next that is there.
func (c *checking) missing(number uint64) error {
	c.log.whole = false
	if needless, err := c.needlessNow(number); err != nil || needless {
		return err
	}
	next, err := c.repo.NextRecord(number)
	if err != nil {
		return err
	}
	c.log.last = next - 1
	c.result.DamagedRecords += int(c.log.last - number + 1)
	c.damagef("%s", missingRecords(number, c.log.last))
	return nil
}

func missingRecords(first, last uint64) string {
	if first == last {
		return fmt.Sprintf("log record %d is missing", first)
	}
	return fmt.Sprintf("log records %d to %d are missing", first, last)
}

// removedMeanwhile reports whether a part was removed since the log was read: a
// compaction may end while its parts are checked. It is safe for concurrent use.
func (c *checking) removedMeanwhile(name archive.Digest) (bool, error) {
	c.logMutex.Lock()
	defer c.logMutex.Unlock()
	last, err := c.repo.Last()
	if err == nil {
		err = c.readLog(c.log.last+1, last)
	}
	return c.log.removed[name], err
}

// lost says which generations cannot be read because of a damaged log: those
// behind the record number, up to which the index goes.
func (c *checking) lost(number uint64) {
	if number >= c.log.last {
		c.indexHasAll = true
		c.notef("the index still has what the damaged part of the log said, and every generation can be read, as long as index/%012d is there: do not remove it; `mkbackup check --repair` writes to the log what it has", c.log.last)
		return
	}
	var names []string
	for _, h := range c.log.headers {
		if h.Number > number && !c.log.forgotten[h.Number] {
			names = append(names, fmt.Sprintf("%s (record %d)", generationName(h.Source, h.Name), h.Number))
		}
	}
	c.result.Lost = len(names)
	const shown = 20
	more := ""
	if len(names) > shown {
		more = fmt.Sprintf(" and %d more", len(names)-shown)
		names = slices.Delete(names, 0, len(names)-shown)
	}
	if len(names) > 0 {
		c.damagef("lost are the generations %s%s: what is behind record %d cannot be understood without the damaged records", strings.Join(names, ", "), more, number)
	}
	if number > 0 {
		c.notef("the generations up to record %d can be read: list and backupfs show them", number)
	}
}

// generationName returns the name of a generation as commands take it.
func generationName(source, name string) string {
	if source == "" {
		return name
	}
	return source + "/" + name
}
