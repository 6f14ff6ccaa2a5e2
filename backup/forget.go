package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// ForgetOptions say which generations Forget drops: those named, or those that
// no rule keeps. One of Names and Rules must be given, not both.
type ForgetOptions struct {
	Names   []string // as index.Find understands them
	Rules   Rules
	Source  *string        // with rules: only of this source; nil means of every one
	Zone    *time.Location // of the days and hours of rules; nil means local time
	DryRun  bool           // decide, and change nothing
	Program string         // name and version, for the log
	Note    func(text string)

	hooks hooks
}

// Forgotten is the outcome of Forget.
type Forgotten struct {
	Decisions []Decision // of all generations that were looked at; by source, newest first
	Number    uint64     // of the record; 0: none was needed, or it was a dry run
}

// Dropped returns the generations that were dropped.
func (f Forgotten) Dropped() (list []index.Generation) {
	for _, d := range f.Decisions {
		if !d.Keep {
			list = append(list, d.Generation)
		}
	}
	return list
}

// forgetting is one call of Forget.
type forgetting struct {
	ctx     context.Context
	repo    *archive.Repository
	options ForgetOptions
	named   map[uint64]bool // the generations that Names mean; nil before that is known
}

// Forget drops generations, all of them with one log record or none, also where an error
// says that the record is committed. The newest
// generation of a source is only dropped by its name. The space comes back with
// Compact. The error wraps index.ErrNoGeneration where a name means none.
func Forget(ctx context.Context, repo *archive.Repository, o ForgetOptions) (Forgotten, error) {
	if o.Rules.None() == (len(o.Names) == 0) {
		return Forgotten{}, errors.New("forget: either generations or rules must be given")
	}
	if o.Zone == nil {
		o.Zone = time.Local
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if !o.DryRun {
		lock, err := repo.LockParts() // so that the number of its record is not one that a checkpoint makes needless
		if err != nil {
			return Forgotten{}, err
		}
		defer lock.Release()
	}
	f := &forgetting{ctx: ctx, repo: repo, options: o}
	for {
		result, err := f.try()
		if !errors.Is(err, fs.ErrExist) { // somebody else took the number of the record
			return result, err
		}
		o.hooks.reach("commit lost")
	}
}

func (f *forgetting) try() (Forgotten, error) {
	db, err := openWhole(f.ctx, f.repo, f.notef)
	if err != nil {
		return Forgotten{}, err
	}
	defer db.Close()
	f.options.hooks.reach("index opened")
	var result Forgotten
	if result.Decisions, err = f.decide(db); err != nil || f.options.DryRun {
		return result, err
	}
	dropped := result.Dropped()
	if len(dropped) == 0 {
		return result, nil
	}
	f.options.hooks.reach("before commit")
	if err := f.ctx.Err(); err != nil {
		return Forgotten{}, err
	}
	if err := f.commit(db, dropped); err != nil {
		return Forgotten{}, err
	}
	result.Number = db.Number() + 1
	f.publishIndex()
	return result, nil
}

func (f *forgetting) notef(format string, a ...any) { f.options.Note(fmt.Sprintf(format, a...)) }

func (f *forgetting) decide(db *index.DB) ([]Decision, error) {
	gens, err := db.Generations()
	if err != nil {
		return nil, err
	}
	if len(f.options.Names) > 0 {
		return f.byName(gens)
	}
	if s := f.options.Source; s != nil && len(index.OfSource(gens, *s)) == 0 {
		return nil, fmt.Errorf("%w of the source %q: `mkbackup list` shows those there are", index.ErrNoGeneration, *s)
	}
	var list []Decision
	for _, source := range sources(gens) {
		if s := f.options.Source; s == nil || *s == source {
			list = append(list, f.options.Rules.decide(index.OfSource(gens, source), f.options.Zone, f.options.hooks.now())...)
		}
	}
	return list, nil
}

// byName looks the names up only once: what "latest" means may change meanwhile.
func (f *forgetting) byName(gens []index.Generation) ([]Decision, error) {
	if f.named == nil {
		named := make(map[uint64]bool)
		for _, name := range f.options.Names {
			g, err := index.Find(gens, name)
			if err != nil {
				return nil, err
			}
			spec := name[strings.LastIndexByte(name, '/')+1:] // without the source
			if number, err := strconv.ParseUint(spec, 10, 64); err == nil && number != g.Number {
				return nil, fmt.Errorf("%w: none has the number %d; one of that year is dropped by more of its date", index.ErrNoGeneration, number)
			}
			named[g.Number] = true
		}
		f.named = named
	}
	var list []Decision
	for _, g := range gens {
		if f.named[g.Number] {
			list = append(list, Decision{Generation: g})
			f.sayNewest(gens, g)
		}
	}
	return list, nil
}

// sayNewest says what it means to drop the newest generation of a source.
func (f *forgetting) sayNewest(gens []index.Generation, g index.Generation) {
	of := index.OfSource(gens, g.Source)
	if of[len(of)-1].Number != g.Number {
		return
	}
	left := slices.DeleteFunc(of, func(g index.Generation) bool { return f.named[g.Number] })
	if len(left) == 0 {
		f.notef("%s is the newest generation of its source, and none is left: the next one reads everything", g.Name)
	} else {
		f.notef("%s is the newest generation of its source: the next one is compared with %s", g.Name, left[len(left)-1].Name)
	}
}

// sources returns the names of the sources that have generations, in their order.
func sources(gens []index.Generation) []string {
	var names []string
	for _, g := range gens {
		names = append(names, g.Source)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (f *forgetting) commit(db *index.DB, dropped []index.Generation) error {
	draft, err := f.repo.NewRecord()
	if err != nil {
		return err
	}
	defer draft.Discard()
	for _, g := range dropped {
		if err := draft.Add(archive.Line{Forget: g.Number}); err != nil {
			return err
		}
	}
	_, err = commitRecord(f.repo, draft, archive.Header{Kind: archive.KindForget, Number: db.Number() + 1,
		Time: f.options.hooks.now().UTC(), Previous: db.RecordDigest(), Program: f.options.Program})
	return err
}

// publishIndex brings the index up to the new record, which is committed whatever
// happens here.
func (f *forgetting) publishIndex() {
	db, err := index.Open(f.repo, index.Options{})
	if err != nil {
		f.notef("the generations are dropped, but the index could not be written; the next command does it: %v", err)
		return
	}
	_ = db.Close() // of what was only read
}
