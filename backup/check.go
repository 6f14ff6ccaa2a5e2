package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// CheckOptions says what Check looks at, and to whom it reports. The zero value
// checks the structure.
type CheckOptions struct {
	ReadData bool   // read every part, or those of Subset
	Subset   Subset // the zero value means all parts
	Against  string // directory that the newest generation of Source is compared with; "" means none
	Source   string
	Repair   bool   // rebuild the index where it is damaged or missing; write the log again where only the index has what it said
	Program  string // that runs, with its version, for the log

	Damage     func(text string)           // called for each damage, with what is damaged; nil means nobody
	Note       func(text string)           // called for what is worth to know but no damage; nil means nobody
	Difference func(difference Difference) // called for each difference of Against; nil means nobody
	Progress   *CheckProgress              // updated meanwhile; nil means nobody looks
}

// CheckProgress tells how far a check is. It is safe for concurrent use.
type CheckProgress struct {
	phase       atomic.Pointer[string]
	done, total atomic.Int64
}

// State returns what is being done, and how many of how many bytes of it are.
func (p *CheckProgress) State() (phase string, done, total int64) {
	if s := p.phase.Load(); s != nil {
		phase = *s
	}
	return phase, p.done.Load(), p.total.Load()
}

func (p *CheckProgress) start(phase string, total int64) {
	p.done.Store(0)
	p.total.Store(total)
	p.phase.Store(&phase)
}

// CheckResult says what was checked and what is damaged.
type CheckResult struct {
	Records        uint64         `json:"records"`
	Generations    int            `json:"generations"` // that can be read
	Parts          int            `json:"parts"`
	StoredBytes    int64          `json:"stored_bytes"`     // of the parts
	Unnamed        int            `json:"unnamed_parts"`    // parts that no record names
	Undeleted      int            `json:"undeleted_parts"`  // files of parts that a compaction removed
	ReadParts      int            `json:"read_parts"`       // parts that were read and verified
	ReadBytes      int64          `json:"read_bytes"`       // stored bytes of those
	Damages        int            `json:"damages"`          // everything that was reported
	DamagedConfig  bool           `json:"damaged_config"`   // repo.json is lost or damaged: nothing else was looked at
	DamagedRecords int            `json:"damaged_records"`  // log records that are damaged or missing
	Lost           int            `json:"lost_generations"` // generations that cannot be read because of that
	DamagedIndexes int            `json:"damaged_indexes"`  // sealed indexes that must not be used
	Repaired       bool           `json:"repaired"`         // the index was rebuilt and is sound now, or the log was written again
	DamagedParts   []*DamagedPart `json:"damaged_parts"`    // in the order of their names
	DamagedFiles   int            `json:"damaged_files"`    // paths with a damaged content, in any generation
	HitGenerations int            `json:"hit_generations"`  // generations that have one
	Compared       int64          `json:"compared"`         // paths compared with Against
	Changed        int64          `json:"changed"`          // paths that differ, and were changed since
	NotStored      int64          `json:"not_stored"`       // paths of Against that are not in the generation
	Differ         int64          `json:"differ"`           // paths that differ although they look unchanged
	Uncompared     int64          `json:"uncompared"`       // paths of Against that could not be read
	Seconds        float64        `json:"seconds"`
	DataRead       bool           `json:"-"` // the parts of Subset, or all, were read; false where there is none that can be
	repairs        int            // of Damages: those that were repaired
}

// DamagedPart is a part that is damaged, and what that hits.
type DamagedPart struct {
	Part      archive.Digest // zeros for all those that a compaction removed although they are needed
	Damages   []*archive.DamageError
	Contents  int            // contents that cannot be read from it, or are others than the log says
	Elsewhere int            // such contents that are read from another part, which has them too: not in Contents
	Files     []index.Holder // that have one of Contents; each path is with one part only
	Unknown   bool           // which files it hits was not found out: Files says nothing
	Needless  bool           // nothing of it can be read, and nothing of the repository lies in it
	whole     bool           // nothing of it can be read
}

// MarshalJSON gives paths that are not UTF-8 as base64 in a field that ends with 64.
func (p *DamagedPart) MarshalJSON() ([]byte, error) {
	type damage struct {
		StoredOffset int64  `json:"stored_offset"`
		Problem      string `json:"problem"`
	}
	type file struct {
		Source      string   `json:"source,omitempty"`
		Path        string   `json:"path,omitempty"`
		Path64      []byte   `json:"path64,omitempty"`
		Generations []string `json:"generations"`
	}
	part := struct {
		Part      archive.Digest `json:"part"`
		Damages   []damage       `json:"damages"`
		Contents  int            `json:"damaged_contents"`
		Elsewhere int            `json:"contents_elsewhere"`
		Files     []file         `json:"files"`
		Unknown   bool           `json:"files_unknown,omitempty"`
	}{Part: p.Part, Contents: p.Contents, Elsewhere: p.Elsewhere, Files: []file{}, Unknown: p.Unknown}
	for _, d := range p.Damages {
		problem := d.Problem
		if d.Err != nil {
			problem += ": " + d.Err.Error()
		}
		part.Damages = append(part.Damages, damage{d.StoredOffset, problem})
	}
	for _, holder := range p.Files {
		f := file{Source: holder.Source, Path: holder.Path}
		if !utf8.ValidString(holder.Path) {
			f.Path, f.Path64 = "", []byte(holder.Path)
		}
		for _, g := range holder.Generations {
			f.Generations = append(f.Generations, g.Name)
		}
		part.Files = append(part.Files, f)
	}
	return json.Marshal(part)
}

type checking struct {
	ctx     context.Context
	repo    *archive.Repository
	options CheckOptions
	result  CheckResult
	db      *index.DB
	log     logFacts
	beyond  int // of the damaged records: those that only an index knows of

	logMutex sync.Mutex // taken where the log is read on while parts are
	mutex    sync.Mutex // guards what follows
	damaged  map[archive.Digest]*DamagedPart
	rejected map[uint64]bool // indexes reported
	told     map[string]bool // damages reported

	uncompared error // why the index was not compared with the log, where that was to be done
	cut        bool  // the index is damaged, and could not be asked all about the contents

	logDamages  int  // reported of the log, and of indexes
	indexHasAll bool // also what the damaged part of the log said
}

// Check verifies a repository: that the log is whole and a chain, that the
// index is sound and the log's, that every part named is there with its size and
// its tail; and more where the options say so. Nothing in the repository is
// changed, unless Repair is set. Damage is reported and counted; an error means
// that the check could not be done, or not all of it.
func Check(ctx context.Context, repo *archive.Repository, o CheckOptions) (CheckResult, error) {
	if o.Progress == nil {
		o.Progress = new(CheckProgress)
	}
	c := &checking{ctx: ctx, repo: repo, options: o, damaged: map[archive.Digest]*DamagedPart{}, rejected: map[uint64]bool{}, told: map[string]bool{}}
	c.result.DamagedParts = []*DamagedPart{}
	started := time.Now()
	err := c.run()
	if c.db != nil {
		_ = c.db.Close() // of what was only read
	}
	c.result.Seconds = time.Since(started).Seconds()
	return c.result, err
}

func (c *checking) run() error {
	if err := c.checkLog(); err != nil {
		return err
	}
	if err := c.openIndex(); err != nil {
		return err
	}
	c.logDamages = c.result.Damages
	if c.db != nil {
		err := c.contents()
		c.cut = errors.Is(err, index.ErrDamaged)
		if err := c.indexDamage(err); err != nil {
			return err
		}
		if c.cut && !c.options.Repair {
			c.notef("not all of the parts, or of what they hit, could be looked at with this index")
		}
	}
	if c.options.Repair {
		if err := c.repair(); err != nil {
			return err
		}
	}
	if c.db == nil || c.options.Against == "" {
		return c.uncompared
	}
	return cmp.Or(c.against(), c.uncompared)
}

// contents checks the parts and what lies in them. Whatever ends it, the result has the
// parts that were found to be damaged by then.
func (c *checking) contents() error {
	parts, err := c.structure()
	if err == nil && c.options.ReadData {
		err = c.dataAndIndex(parts)
	}
	var lost map[archive.Hash]*DamagedPart
	if err == nil {
		lost, err = c.lostContents()
	}
	if err == nil && len(c.damaged)+len(lost) > 0 {
		err = c.hits(lost)
	}
	for _, part := range c.damaged {
		part.Unknown = err != nil
		c.result.DamagedParts = append(c.result.DamagedParts, part)
	}
	slices.SortFunc(c.result.DamagedParts, func(a, b *DamagedPart) int { return cmp.Compare(a.Part.String(), b.Part.String()) })
	return err
}

// damagef reports a damage, unless that was done before. It is safe for concurrent use.
func (c *checking) damagef(format string, a ...any) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.result.Damages++
	text := fmt.Sprintf(format, a...)
	if c.options.Damage != nil && !c.told[text] {
		c.options.Damage(text)
	}
	c.told[text] = true
}

// notef tells what is no damage. It is safe for concurrent use.
func (c *checking) notef(format string, a ...any) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.options.Note != nil {
		c.options.Note(fmt.Sprintf(format, a...))
	}
}

// openIndex verifies the sealed indexes, and opens the newest one as it is, or
// what can be derived from the log.
func (c *checking) openIndex() error {
	if err := index.Check(c.repo, c.rejectedIndex); err != nil {
		return err
	}
	db, err := index.Open(c.repo, index.Options{Partial: true, Temporary: true, Interrupted: c.ctx.Err, Log: c.notef, Damaged: c.rejectedIndex})
	var broken index.LogError
	if c.result.DamagedRecords == 0 && errors.As(err, &broken) {
		c.result.DamagedRecords++
		c.damagef("%v", broken.Problem)
	}
	if err != nil && (c.result.DamagedRecords == 0 || c.ctx.Err() != nil) {
		return err
	}
	if err != nil {
		c.notef("no generation can be read")
		c.lost(0)
		return nil
	}
	c.db = db
	if c.result.DamagedRecords == 0 && db.Problem() != nil {
		c.result.DamagedRecords++
		c.damagef("%v", db.Problem())
	}
	gens, err := db.Generations()
	if err != nil {
		return c.indexDamage(err)
	}
	c.result.Generations = len(gens)
	if db.Problem() != nil || c.result.DamagedRecords > c.beyond {
		c.lost(db.Number())
		return nil
	}
	return c.compareWithLog(gens)
}

// indexDamage reports an index that contradicts itself; any other error it
// returns.
func (c *checking) indexDamage(err error) error {
	if !errors.Is(err, index.ErrDamaged) {
		return err
	}
	c.rejectedIndex(c.db.Number(), err)
	return nil
}

func (c *checking) rejectedIndex(number uint64, err error) {
	if c.rejected[number] {
		return
	}
	c.rejected[number] = true
	switch {
	case errors.Is(err, index.ErrBeyondLog):
		c.result.DamagedRecords++
		c.beyond++
		c.damagef("index %d was made with records up to that number, but the log ends with record %d: the last records are missing, and the generations they made", number, c.log.last)
		return
	case errors.Is(err, index.ErrOtherEnd):
		c.result.DamagedRecords++
		c.beyond++
		c.damagef("%s", otherEnd(number))
		c.notef("only index/%012d knows what the other record said: do not remove it; its seal.json has the SHA-256 of that record", number)
		return
	}
	if c.result.DamagedRecords > 0 { // it may be the log that is wrong
		c.notef("index %d: %v", number, err)
		return
	}
	c.result.DamagedIndexes++
	c.damagef("index %d: %v", number, err)
}

// compareWithLog compares what the index says about generations and parts with
// what was read in the log.
func (c *checking) compareWithLog(gens []index.Generation) error {
	if err := c.readLog(c.log.last+1, c.db.Number()); err != nil { // what was committed meanwhile
		return err
	}
	var known []index.Generation
	for _, g := range gens {
		known = append(known, index.Generation{Number: g.Number, Source: g.Source, Name: g.Name, Time: g.Time.UTC()})
	}
	if !slices.Equal(known, c.log.kept()) {
		c.rejectedIndex(c.db.Number(), errors.New("its generations are not those of the log"))
	}
	named := 0
	wrong := false
	err := c.db.Parts(func(p archive.Part) bool {
		named++
		wrong = wrong || c.log.parts[p.Name] != p
		return true
	})
	if err != nil {
		return c.indexDamage(err)
	}
	if wrong || named != len(c.log.parts) {
		c.rejectedIndex(c.db.Number(), errors.New("its parts are not those of the log"))
	}
	return nil
}

// dataAndIndex reads the parts, and meanwhile compares the index with the log,
// unless only a subset is wanted, or one of the two is known to be damaged. Where only
// the comparison cannot be done, for want of room, say, it is uncompared that says so.
func (c *checking) dataAndIndex(parts []archive.Part) error {
	if c.options.Subset.Length != 0 || len(c.rejected) > 0 || c.result.DamagedRecords > 0 || c.db.Problem() != nil {
		return c.readData(parts)
	}
	var difference, err error
	var comparison sync.WaitGroup
	ctx, stop := context.WithCancel(c.ctx)
	defer stop()
	comparison.Go(func() { difference, err = c.rebuilt(ctx) })
	readErr := c.readData(parts)
	if readErr != nil {
		stop()
	} else {
		c.options.Progress.start("index", 0)
	}
	comparison.Wait()
	if difference != nil {
		c.rejectedIndex(c.db.Number(), difference)
	}
	if err != nil && readErr == nil && c.ctx.Err() == nil {
		c.uncompared = fmt.Errorf("the parts were read, but the index could not be compared with the log: %w", err)
		err = nil
	}
	return cmp.Or(readErr, err)
}

// rebuilt compares the index with one that is derived from the whole log, unless
// ctx ends. difference says what is wrong with the index; it is nil where nothing is.
func (c *checking) rebuilt(ctx context.Context) (difference, err error) {
	fresh, err := index.Rebuild(c.repo, index.Options{Temporary: true, Log: c.notef, Interrupted: ctx.Err})
	if err != nil {
		return nil, err
	}
	defer fresh.Close()
	if fresh.Number() != c.db.Number() {
		c.notef("the index was not compared with the log: a run committed meanwhile")
		return nil, nil
	}
	want, err := fresh.Digest()
	if err != nil {
		return nil, err
	}
	got, err := c.db.Digest()
	switch {
	case errors.Is(err, index.ErrDamaged):
		return err, nil
	case err == nil && got != want:
		return errors.New("it says something else than the log"), nil
	}
	return nil, err
}

// repair rebuilds the index where that is needed, or writes to the log what only the
// index has.
func (c *checking) repair() error {
	if c.result.DamagedRecords > 0 {
		switch {
		case c.beyond > 0:
			c.notef("the log is not written again: its last records are missing or replaced, and a new one would take the number of one that may be found")
			return nil
		case c.db != nil && c.indexHasAll && !c.cut:
			return c.repairLog()
		}
		c.notef("the index cannot be rebuilt from a damaged log")
		return nil
	}
	if len(c.rejected) == 0 {
		db, err := index.Open(c.repo, index.Options{Log: c.notef, Interrupted: c.ctx.Err}) // publishes one where it is missing
		if err != nil {
			return err
		}
		if !db.Kept() {
			err = errors.New("the index was not repaired")
		}
		return errors.Join(err, db.Close())
	}
	db, err := index.Rebuild(c.repo, index.Options{Log: c.notef, Interrupted: c.ctx.Err})
	if err != nil {
		c.notef("the index cannot be rebuilt: %v", err)
		return nil
	}
	_ = c.db.Close() // of what was only read
	c.db = db
	generations, err := db.Generations()
	if err != nil {
		return err
	}
	c.result.Generations = len(generations)
	sound := db.Kept()
	if !sound {
		c.notef("the index is not repaired: the one that was rebuilt cannot be kept")
	}
	err = index.Check(c.repo, func(number uint64, err error) {
		sound = false
		c.notef("index %d stays: %v", number, err)
	})
	if c.result.Repaired = sound && err == nil; c.result.Repaired {
		c.result.repairs = c.result.DamagedIndexes
		c.uncompared = nil // that one is gone
	}
	if err != nil || !c.cut {
		return err
	}
	return c.contentsAgain()
}

// contentsAgain checks the contents as the index says them that was rebuilt, where the damaged
// one did not tell all. Only that one was a damage so far; the others are counted anew.
func (c *checking) contentsAgain() error {
	c.damaged = map[archive.Digest]*DamagedPart{}
	r := &c.result
	r.Damages, r.DamagedParts = r.DamagedIndexes, []*DamagedPart{}
	r.Parts, r.StoredBytes, r.Unnamed, r.Undeleted, r.ReadParts, r.ReadBytes = 0, 0, 0, 0, 0, 0
	return c.contents()
}

// repairLog commits a checkpoint: a record that says all that the damaged log said, as
// the index has it.
func (c *checking) repairLog() error {
	lock, err := c.repo.LockParts()
	if err != nil {
		return err
	}
	defer lock.Release()
	number, _, err := commitCheckpoint(c.ctx, c.repo, c.db, checkpointOptions{limit: math.MaxInt64, program: c.options.Program, repairs: true})
	if errors.Is(err, fs.ErrExist) {
		c.notef("the log was not repaired: another run committed meanwhile; check again")
		return nil
	}
	if err != nil {
		return fmt.Errorf("repair the log: %w", err)
	}
	c.notef("log record %d says again what the damaged ones said", number)
	c.result.Repaired, c.result.repairs = true, c.logDamages
	db, err := index.Open(c.repo, index.Options{Log: c.notef, Interrupted: c.ctx.Err}) // sets those aside that fit to damaged records
	if err != nil {
		return err
	}
	return db.Close()
}

// Logless reports whether there are parts, but no log: those of a first run that is under
// way or was interrupted, or of a log that is lost.
func (r CheckResult) Logless() bool { return r.Records == 0 && r.Generations == 0 && r.Unnamed > 0 }

// Damaged reports whether there is damage, other than what was repaired.
func (r CheckResult) Damaged() bool { return r.Damages > r.repairs || r.Differ > 0 }
