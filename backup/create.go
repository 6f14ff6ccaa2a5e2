// Package backup is the engine: it scans a source, compares it with the
// generation before, packs what is new into parts and commits generations; it
// drops generations, reclaims the space of what no generation needs any more, and
// checks repositories. It never prints and never exits.
package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// CreateOptions says what Create backs up, and how. Paths must not be empty.
type CreateOptions struct {
	Paths    []string  // what to back up; below Root where that is given
	Root     string    // directory that paths are relative to as if it were /; "" means /
	Source   string    // "" is the unnamed source
	Time     time.Time // of the generation; zero means now
	Checksum bool      // read everything and compare contents, not times
	DryRun   bool      // find out what would be done; write nothing
	Unplaced bool      // put all contents into the same parts, however long they may live; to measure what placement gains
	Program  string    // name and version, for the log
	Exclude  Excludes
	ReadRate int64 // most raw bytes read from the source in a second; 0 means no limit
	Threads  int   // frames compressed, and directories scanned, at the same time; 0 means GOMAXPROCS and 4
	Events   Events
	Progress *Progress // updated during the run; nil means nobody looks

	hooks hooks
}

// Events are called during a run, each from one goroutine at a time; nil ones
// are not called. Paths are those of the generation, without a leading "/".
type Events struct {
	Problem func(path string, err error)     // something could not be backed up, or changed meanwhile
	Note    func(text string)                // something worth to know
	Damage  func(text string)                // the repository is damaged
	Change  func(change Change, path string) // a path that differs from the generation before
	// Excluded is told of each path that is left out, but not of what lies below it,
	// and why.
	Excluded func(path string, why error)
}

// Change is how a path differs from the generation before.
type Change byte

// The changes that Events reports.
const (
	Added   Change = '+'
	Changed Change = 'M'
	Removed Change = '-'
)

// Progress tells how far a run is. It is safe for concurrent use.
type Progress struct {
	files, bytes atomic.Int64
	path         atomic.Pointer[string]
	total        atomic.Pointer[index.Generation]
}

// Files returns the entries seen so far, and in the generation before (0: none).
func (p *Progress) Files() (done, before int64) {
	if g := p.total.Load(); g != nil {
		before = g.Files + g.Dirs
	}
	return p.files.Load(), before
}

// ReadBytes returns the raw bytes read from the source so far.
func (p *Progress) ReadBytes() int64 { return p.bytes.Load() }

// Path returns the path that is worked on.
func (p *Progress) Path() string {
	if path := p.path.Load(); path != nil {
		return *path
	}
	return ""
}

// Summary is the outcome of Create. Its JSON names are those of the command's summary.
type Summary struct {
	Generation  string  `json:"generation"`
	Number      uint64  `json:"number"`
	Files       int64   `json:"files"` // entries that are no directories
	Dirs        int64   `json:"dirs"`
	New         int64   `json:"new"`     // entries that the generation before did not have
	Changed     int64   `json:"changed"` // entries that it had otherwise
	Unchanged   int64   `json:"unchanged"`
	Gone        int64   `json:"gone"`          // entries that only it had
	Excluded    int64   `json:"excluded"`      // paths excluded, not counting what lies below
	Errors      int64   `json:"errors"`        // problems, each reported
	RawBytes    int64   `json:"raw_bytes"`     // of all files, each link counted
	ReadBytes   int64   `json:"read_bytes"`    // read from the source
	StoredBytes int64   `json:"stored_bytes"`  // of new parts and of the log record; of a dry run those of contents at the most, uncompressed
	Parts       int64   `json:"parts"`         // new parts
	Missing     int64   `json:"missing_parts"` // parts that were not there, each reported
	LostRecords uint64  `json:"lost_records"`  // that are missing in the log, or damaged, each or as its end reported
	Seconds     float64 `json:"seconds"`
}

// ErrNothing says that none of the given paths is there, or all are excluded.
var ErrNothing = errors.New("nothing to back up")

// fatal is an error that ends the run, in a place where others concern one file.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// creation is one run of Create.
type creation struct {
	ctx       context.Context
	repo      *archive.Repository
	options   CreateOptions
	selection *selection
	own       ownDir // is left out
	scanner   *scanner
	limiter   *rate.Limiter // of bytes read; nil means no limit
	leases    patience
	started   time.Time
	time      time.Time // of the new generation

	lock     *archive.Lock    // no file of a part is deleted meanwhile
	db       *index.DB        // newest index
	view     index.View       // of the generation compared with
	previous index.Generation // that generation; Number 0: none
	base     uint64           // record that the new one is against; 0: it will be complete

	draft       *archive.RecordDraft
	pool        *archive.PackerPool
	packers     [temperatures]*archive.Packer // nil where nothing was added yet
	placement   placement
	addedMu     sync.Mutex
	added       []int64                   // stored bytes of the parts added to the draft
	stored      map[archive.Hash]struct{} // contents in those parts, or in the packer
	relied      map[archive.Hash]struct{} // contents of the new generation's record that only the index knows
	lost        map[archive.Digest]bool   // parts that the index names and that are not there
	lostParts   int64                     // those of them that generations need
	lostRecords uint64                    // that are missing in the log
	devices     devices                   // that were met
	links       map[string]archive.Entry  // first link of each hard-link group that was read
	said        map[uint64]struct{}       // hashes of the problems and notes that were reported: a second comparison does not repeat them
	seed        maphash.Seed              // of those hashes
	chunks      chunker
	small       []byte // buffer of one small file
	matched     bool   // one of the paths is there
	refused     []refusal
	mounts      []string // left out, as messages show them
	again       bool     // this is not the first comparison: changes were reported
	summary     Summary
}

// Create makes a generation. Problems with single files are reported and
// counted in Summary.Errors; the generation is committed without those files.
// Of parts that are missing, the source's files that lay in them are read and stored
// again.
// An error means that nothing was committed, unless it says that the generation is; parts
// that were finished stay and are used by the next run. Other runs, on the same source too, may go on at
// the same time.
func Create(ctx context.Context, repo *archive.Repository, o CreateOptions) (Summary, error) {
	if o.Progress == nil {
		o.Progress = new(Progress)
	}
	c := &creation{ctx: ctx, repo: repo, options: o, started: time.Now(), scanner: newScanner(ctx, o.Threads), limiter: newLimiter(o.ReadRate), leases: patience{allLeases},
		stored: make(map[archive.Hash]struct{}), said: make(map[uint64]struct{}), seed: maphash.MakeSeed()}
	if c.time = o.Time.UTC(); c.time.IsZero() {
		c.time = o.hooks.now().UTC()
	}
	if o.Threads < 0 || o.ReadRate < 0 {
		return Summary{}, fmt.Errorf("%d threads, %d bytes per second: neither can be negative", o.Threads, o.ReadRate)
	}
	if !archive.ValidSourceName(o.Source) {
		return Summary{}, fmt.Errorf("source name %q: it must begin with a letter, hold only letters, digits, '.', '_' and '-', and not be \"latest\"", o.Source)
	}
	if err := c.prepare(); err != nil {
		return Summary{}, err
	}
	defer c.close()
	if err := c.run(); err != nil {
		return Summary{}, err
	}
	c.sweep()
	c.summary.Seconds = time.Since(c.started).Seconds()
	return c.summary, nil
}

func (c *creation) prepare() (err error) {
	if c.selection, err = newSelection(c.options.Root, c.options.Paths); err != nil {
		return err
	}
	if c.own, err = directoryOf(c.repo); err != nil {
		return err
	}
	if c.lock, err = c.repo.LockParts(); err != nil {
		return err
	}
	if err = c.openIndex(); err != nil {
		c.lock.Release()
		return err
	}
	if err = c.countMissing(); err != nil {
		c.close()
		return err
	}
	c.options.hooks.reach("index opened")
	if c.options.DryRun {
		return nil
	}
	if c.draft, err = c.repo.NewRecord(); err != nil {
		c.close()
	}
	return err
}

// openIndex opens the index, and reports if it says that the log was longer.
func (c *creation) openIndex() (err error) {
	var lost lostEnd
	if c.db, lost, err = openNewest(c.ctx, c.repo, c.notef); err != nil {
		return err
	}
	if lost.records > 0 {
		c.lostRecords = lost.records
		c.damagef("%s; this run goes on from there", lost.text)
	}
	return nil
}

// sweep deletes the files that a compaction could not delete because of this run,
// or another one. The generation is committed whatever happens here.
func (c *creation) sweep() {
	if c.options.DryRun {
		return
	}
	c.options.hooks.reach("before sweep")
	c.lock.Release()
	if _, err := sweepAfter(c.repo, c.db, c.notef, c.options.hooks); err != nil {
		c.notef("%v", err)
	}
}

func (c *creation) close() {
	defer c.lock.Release()
	for _, p := range c.packers {
		if p != nil {
			p.Abort()
		}
	}
	if c.draft != nil {
		c.draft.Discard()
	}
	_ = c.db.Close() // of what was only read
}

// run compares and commits, again and again until no other run came between.
func (c *creation) run() error {
	unnamed, err := c.listParts()
	if err != nil {
		return err
	}
	if !c.options.DryRun {
		if err := c.adopt(unnamed); err != nil {
			return err
		}
	}
	for {
		err := c.compare()
		if err == nil && !c.options.DryRun {
			err = c.commit()
		}
		if !errors.Is(err, errOvertaken) {
			return err
		}
		c.again = true
		if err := c.draft.Reset(); err != nil {
			return err
		}
	}
}

func (c *creation) addPart(p archive.PublishedPart) error {
	for _, content := range p.Contents {
		c.stored[content.Hash] = struct{}{}
	}
	return c.recordPart(p)
}

// recordPart is called by the packers, on their own goroutines, while contents are
// still added: it must not touch anything but the draft's parts.
func (c *creation) recordPart(p archive.PublishedPart) error {
	c.addedMu.Lock()
	defer c.addedMu.Unlock()
	c.added = append(c.added, p.Part.Stored)
	return c.draft.AddPart(p)
}

// compare walks the source and adds every difference to the draft.
func (c *creation) compare() (err error) {
	if err := c.chooseBase(); err != nil {
		return err
	}
	c.summary = Summary{Missing: c.lostParts, LostRecords: c.lostRecords}
	c.devices = make(devices)
	c.links = make(map[string]archive.Entry)
	c.relied = make(map[archive.Hash]struct{})
	c.matched, c.refused, c.mounts = false, nil, nil
	c.options.Progress.files.Store(1) // the root
	c.options.hooks.reach("base chosen")
	c.pool = archive.NewPackerPool(archive.PackerOptions{PartStored: c.repo.PartSize, Workers: c.options.Threads}, temperatures)
	c.packers = [temperatures]*archive.Packer{}
	if err := c.walk(); err != nil {
		var f fatal
		if errors.As(err, &f) {
			return f.error
		}
		return err
	}
	if !c.matched && len(c.refused) > 0 {
		return fmt.Errorf("%w: %s %w", ErrNothing, c.shown(c.refused[0].path), c.refused[0].why)
	}
	if !c.matched {
		return fmt.Errorf("%w: none of the given paths can be backed up", ErrNothing)
	}
	for _, r := range c.refused {
		c.problem(r.path, r.why)
	}
	c.noteMounts()
	return c.closePackers()
}

// shown returns a path of the generation as a message shows it.
func (c *creation) shown(path string) string {
	if path == "." {
		return cmp.Or(c.options.Root, "/")
	}
	return Printable("/" + path)
}

// chooseBase finds the generation to compare with: the newest one of the
// source. Where the newest record of the source was forgotten, the new record
// must be complete; what an older generation has is still not read again.
func (c *creation) chooseBase() error {
	gens, err := c.db.Generations()
	if err != nil {
		return err
	}
	c.previous, c.view, c.base = index.Generation{}, index.View{}, 0
	of := index.OfSource(gens, c.options.Source)
	c.placement = placement{db: c.db, gens: gens, source: c.db.Timeline(of), now: c.time}
	if len(of) == 0 {
		return nil
	}
	c.previous = of[len(of)-1]
	c.view = c.db.At(c.previous.Number)
	c.scanner.view = c.view
	before := c.previous // a copy: another goroutine may read it when another base is chosen
	c.options.Progress.total.Store(&before)
	head, ok, err := c.db.Head(c.options.Source)
	if err == nil && ok && head == c.previous.Number {
		c.base = head
	}
	return err
}

var errOvertaken = errors.New("another run committed meanwhile")

// commit makes the record. Where another run took its number, the index is
// brought up to date: either the record is good under the next number, or the
// error is errOvertaken and all must be compared again.
func (c *creation) commit() error {
	for {
		number := c.db.Number() + 1
		c.options.hooks.reach("before commit")
		err := c.commitAs(number)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		c.options.hooks.reach("commit lost")
		if err := c.reopen(); err != nil {
			return err
		}
		c.options.hooks.reach("index reopened")
		harmless, err := c.harmless(number, c.db.Number())
		if err != nil {
			return err
		}
		if !harmless {
			return errOvertaken
		}
	}
}

// harmless reports whether the records from first to last, all those that the
// index took in since the comparison, leave it valid. Generations of other
// sources do; forgets and compactions, if all that it relies on is still there.
func (c *creation) harmless(first, last uint64) (bool, error) {
	if c.options.hooks.blind {
		return true, nil
	}
	taken := false
	for number := first; number <= last; number++ {
		h, err := c.repo.RecordHeader(number)
		if err != nil {
			return false, err
		}
		if h.Kind == archive.KindGeneration && h.Source == c.options.Source {
			return false, nil
		}
		taken = taken || h.Kind != archive.KindGeneration
	}
	if !taken {
		return true, nil
	}
	return c.stands()
}

// stands reports whether the index knows what the comparison relied on: the base,
// which keeps the contents of what is unchanged, and the contents that were not
// stored because the index knew them.
func (c *creation) stands() (bool, error) {
	gens, err := c.db.Generations()
	if err != nil {
		return false, err
	}
	if c.base != 0 && !slices.ContainsFunc(gens, func(g index.Generation) bool { return g.Number == c.base }) {
		return false, nil
	}
	for hash := range c.relied {
		if _, err := c.db.Content(hash); errors.Is(err, index.ErrNotFound) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}

func (c *creation) reopen() error {
	db, err := index.Open(c.repo, index.Options{Log: c.notef, Previous: c.db})
	if err != nil {
		return err
	}
	_ = c.db.Close() // of what was only read
	c.db = db
	c.view = db.At(c.previous.Number)
	return nil
}

func (c *creation) commitAs(number uint64) error {
	h := archive.Header{Kind: archive.KindGeneration, Number: number, Source: c.options.Source,
		Time: c.time, Base: c.base, Previous: c.db.RecordDigest(), Program: c.options.Program}
	var err error
	if h.Name, err = c.freeName(h.Time); err != nil {
		return err
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	stored, err := commitRecord(c.repo, c.draft, h)
	if err != nil {
		return err
	}
	c.summary.Generation, c.summary.Number = h.Name, number
	c.summary.Parts, c.summary.StoredBytes = int64(len(c.added)), stored
	for _, bytes := range c.added {
		c.summary.StoredBytes += bytes
	}
	c.stored, c.relied, c.links, c.pool, c.small = nil, nil, nil, nil, nil // room for the index
	c.publishIndex()
	return nil
}

// publishIndex brings the index up to the new record. The generation is
// committed whatever happens here.
func (c *creation) publishIndex() {
	c.options.hooks.reach("committed")
	err := c.reopen()
	if err == nil {
		return
	}
	if _, _, damage := c.repo.ReadRecord(c.summary.Number); damage != nil && !archive.IsInconclusive(damage) {
		c.summary.LostRecords++
		c.damagef("the record of this generation cannot be read: %v", damage)
		return
	}
	var broken index.LogError
	if errors.As(err, &broken) && !errors.As(err, new(syscall.Errno)) { // no disk or server is to blame
		c.summary.LostRecords++
		c.damagef("the generation is committed, but with it the log cannot be understood: %v", broken)
		return
	}
	c.notef("the generation is committed, but its index could not be written; the next command does it: %v", err)
}

// freeName returns the name of a generation of the given time.
func (c *creation) freeName(t time.Time) (string, error) {
	stamp := t.Format(archive.GenerationTimeFormat)
	if !archive.ValidGenerationName(stamp) {
		return "", fmt.Errorf("no generation can be of the time %s: the year must be 0000 to 9999", t)
	}
	gens, err := c.db.Generations()
	if err != nil {
		return "", err
	}
	greatest := 0 // what was forgotten leaves gaps: a later one has a greater number
	for _, g := range index.OfSource(gens, c.options.Source) {
		if g.Name == stamp {
			greatest = max(greatest, 1)
		} else if text, ok := strings.CutPrefix(g.Name, stamp+"."); ok {
			n, _ := strconv.Atoi(text) // it is a name of a generation
			greatest = max(greatest, n)
		}
	}
	if greatest == 0 {
		return stamp, nil
	}
	return fmt.Sprintf("%s.%d", stamp, greatest+1), nil
}

// known reports whether a content of n bytes needs not be stored. Where the log gives it
// another length, no entry could have it.
func (c *creation) known(hash archive.Hash, n int) (bool, error) {
	if _, ok := c.stored[hash]; ok {
		return true, nil
	}
	place, err := c.db.Content(hash)
	if errors.Is(err, index.ErrNotFound) || c.lost[place.Part.Name] {
		return false, nil
	}
	if err != nil {
		return false, fatal{err}
	}
	if place.RawLen != int64(n) {
		return false, nil
	}
	c.relied[hash] = struct{}{}
	c.options.hooks.reach("content known")
	return true, nil
}

// first reports whether it is called with text for the first time. There may be millions
// of texts, of which it keeps hashes: of so many, two are the same once in a million runs.
func (c *creation) first(text string) bool {
	hash := maphash.String(c.seed, text)
	_, before := c.said[hash]
	c.said[hash] = struct{}{}
	return !before
}

func (c *creation) notef(format string, a ...any) {
	if text := fmt.Sprintf(format, a...); c.options.Events.Note != nil && c.first(text) {
		c.options.Events.Note(text)
	}
}

func (c *creation) problem(path string, err error) {
	c.summary.Errors++
	if c.options.Events.Problem != nil && c.first(path+": "+err.Error()) {
		c.options.Events.Problem(path, err)
	}
}

func (c *creation) damagef(format string, a ...any) {
	if c.options.Events.Damage != nil {
		c.options.Events.Damage(fmt.Sprintf(format, a...))
	}
}

func (c *creation) change(change Change, path string) {
	if c.options.Events.Change != nil && !c.again {
		c.options.Events.Change(change, path)
	}
}
