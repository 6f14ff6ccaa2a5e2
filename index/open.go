package index

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
	"golang.org/x/sys/unix"
)

// Options are the choices of Open and Rebuild. The zero value works.
type Options struct {
	// Log gets messages such as "index 12 is damaged: …"; nil drops them. It is
	// called by the goroutine that called Open.
	Log func(format string, args ...any)
	// Partial makes Open show what it can of a damaged log, instead of failing;
	// DB.Problem tells. Such an index is never published.
	Partial bool
	// Temporary makes Open publish nothing: what has to be added to the published
	// index goes into a temporary one, which nobody sees.
	Temporary bool
	// Damaged gets each index that is damaged, or of another repository or log,
	// and why; where it is nil, Log does. It is called as Log is.
	Damaged func(number uint64, err error)
	// Previous is an open index of the same repository, or nil. What was verified
	// when it was opened is not hashed again where it is still the same file,
	// unchanged. It may be closed as soon as Open has returned.
	Previous *DB
	// Interrupted is asked every few thousand lines while records of the log are
	// added; an error of it ends Open. nil: nobody interrupts.
	Interrupted func() error
	// Progress is updated while records of the log are added; nil means nobody looks.
	Progress *Progress
}

// Progress tells how far an index is brought up to the log. It is safe for
// concurrent use.
type Progress struct{ done, total, lines atomic.Int64 }

// Records returns how many records are in the index, and how many will be.
func (p *Progress) Records() (done, total int64) { return p.done.Load(), p.total.Load() }

// Lines returns the lines read of all records so far.
func (p *Progress) Lines() int64 { return p.lines.Load() }

// lineCounter is a record of which it counts the lines that are read. It asks
// interrupted now and then.
type lineCounter struct {
	record
	lines       *atomic.Int64
	interrupted func() error
}

// Next implements record.
func (c lineCounter) Next() (archive.Line, error) {
	if c.lines.Add(1)%4096 == 1 {
		if err := c.interrupted(); err != nil {
			return archive.Line{}, interruption{err}
		}
	}
	return c.record.Next()
}

// interruption is an error of Options.Interrupted: it says nothing about the log.
type interruption struct{ error }

func (i interruption) Unwrap() error { return i.error }

// endsOpen reports whether an error of applying the log is no damage of it, with which
// Open could do something else.
func endsOpen(err error) bool {
	return errors.Is(err, errAgain) || errors.As(err, new(interruption)) || starved(err)
}

// errAgain says that another process changed something: list the indexes again.
var errAgain = errors.New("changed meanwhile")

// maxAttempts bounds how often that is done.
const maxAttempts = 50

// Open opens the newest sealed index of a repository and brings it up to the end
// of the log. What it had to add it publishes, so that the next one has less to
// do; where the repository cannot be written, or its disk is full, the index is
// a temporary one, which nobody sees. An index that is damaged, of another
// repository or of another log is never used; it is replaced.
//
// The repository must stay open for as long as the DB is. The error wraps
// syscall.ENOSPC where there is no room even for a temporary index.
func Open(r *archive.Repository, o Options) (*DB, error) { return open(r, o, func(*opener) {}) }

// Shrink is Open, but leaves out of the index what nobody sees any more, and
// replaces the published one.
func Shrink(r *archive.Repository, o Options) (*DB, error) {
	return open(r, o, func(p *opener) { p.shrink = true })
}

// Rebuild is Open, but derives the index from the log alone, and replaces the
// published one.
func Rebuild(r *archive.Repository, o Options) (*DB, error) {
	return open(r, o, func(p *opener) { p.rebuild = true })
}

func open(r *archive.Repository, o Options, choose func(*opener)) (*DB, error) {
	if o.Log == nil {
		o.Log = silent
	}
	if o.Interrupted == nil {
		o.Interrupted = func() error { return nil }
	}
	if o.Progress == nil {
		o.Progress = new(Progress)
	}
	trusted, err := ownersOf(r.Dir())
	if err != nil {
		return nil, err
	}
	p := &opener{Options: o, r: r, owners: trusted, bad: map[uint64]bool{}, verified: newVerified(o.Previous)}
	choose(p)
	for range maxAttempts {
		db, err := p.try()
		if !errors.Is(err, errAgain) {
			return db, err
		}
	}
	return nil, errors.New("index: other processes keep changing it")
}

// silent is a Log that drops everything.
func silent(string, ...any) {}

// opener is one call of Open.
type opener struct {
	Options
	r        *archive.Repository
	owners   owners
	bad      map[uint64]bool // sealed indexes that must not be used
	disputed bool            // one of them says that the log ended with another record: it stays
	witness  *sealed         // the newest sealed index that is sound, of a record that cannot be read
	verified *verified
	records  []uint64 // of the log, ascending
	first    bool     // there is no sealed index yet
	aside    string   // directory of indexes that are about to be removed; "" where there are none
	rebuild  bool     // use none of them
	shrink   bool     // merge all runs, and drop what nobody sees
}

// sealed is a sealed index that agrees with its seal.
type sealed struct {
	seal
	dir string
}

func (p *opener) try() (*DB, error) {
	numbers, err := p.list() // before the end of the log is looked up, so that none can be beyond it
	if err != nil {
		return nil, err
	}
	p.first = len(numbers) == 0
	records, err := p.r.Records()
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return &DB{tables: new(tables)}, nil
	}
	last := records[len(records)-1]
	var base *sealed
	if p.rebuild {
		err = p.mayReplace(numbers, last)
	} else {
		base, err = p.newest(numbers, last)
	}
	if err != nil {
		return nil, err
	}
	if base != nil {
		behind, _ := slices.BinarySearch(records, base.Record+1)
		if p.r.Checkpoint(records[behind:]) > 0 {
			base = nil // numbers of parts and versions are those of the checkpoint from there on
		}
	}
	p.records = records
	if base != nil && base.Record == last && !p.shrink {
		return p.openSealed(base.dir, base.Tables, last)
	}
	return p.build(base, last)
}

// list returns the numbers of the sealed indexes, newest first.
func (p *opener) list() ([]uint64, error) { return listIn(p.r.IndexDir()) }

func listIn(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("index: %w", err)
	}
	var numbers []uint64
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err == nil && n > 0 && e.Name() == dirName(n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	slices.Reverse(numbers)
	return numbers, nil
}

// Published reports whether the repository has a sealed index of a record, sound or
// not.
func Published(r *archive.Repository, number uint64) bool {
	_, err := os.Lstat(filepath.Join(r.IndexDir(), dirName(number)))
	return err == nil
}

// Newest returns the number of the newest sealed index that the repository has, sound or
// not, 0 where none is seen.
func Newest(r *archive.Repository) uint64 {
	numbers, err := listIn(r.IndexDir())
	if err != nil || len(numbers) == 0 {
		return 0
	}
	return numbers[0]
}

func dirName(number uint64) string { return fmt.Sprintf("%012d", number) }

func (p *opener) dir(number uint64) string { return filepath.Join(p.r.IndexDir(), dirName(number)) }

// newest returns the newest index that may be used, nil where there is none.
func (p *opener) newest(numbers []uint64, last uint64) (*sealed, error) {
	for _, n := range numbers {
		if p.bad[n] {
			continue
		}
		s, err := p.verify(n, last)
		if err == nil {
			return s, nil
		}
		if starved(err) {
			return nil, fmt.Errorf("index %d: %w", n, err)
		}
		if _, gone := os.Lstat(p.dir(n)); errors.Is(gone, fs.ErrNotExist) {
			return nil, errAgain
		}
		if errors.Is(err, errOutdated) {
			p.bad[n] = true
			continue
		}
		p.disputed = p.disputed || errors.Is(err, ErrOtherEnd)
		p.reject(n, err)
	}
	return nil, nil
}

// mayReplace refuses to replace the index of the last record where it says that this was
// another one.
func (p *opener) mayReplace(numbers []uint64, last uint64) error {
	if p.Temporary || !slices.Contains(numbers, last) {
		return nil
	}
	if _, err := p.verify(last, last); errors.Is(err, ErrOtherEnd) {
		return fmt.Errorf("index %d: %w", last, err)
	}
	return nil
}

// starved reports whether an error only says that there are too many open files, or too
// little memory: of what could not be looked at it says nothing.
func starved(err error) bool {
	return archive.IsInconclusive(err) && !errors.Is(err, fs.ErrPermission)
}

// reject makes sure that an index is not used, and says why.
func (p *opener) reject(number uint64, err error) {
	p.bad[number] = true
	if p.Damaged != nil && !errors.Is(err, errSchema) {
		p.Damaged(number, err)
		return
	}
	p.Log("index %d is not used: %v", number, err)
}

// verify looks twice at an index that seems damaged: it may just have been
// exchanged for another one.
func (p *opener) verify(n, last uint64) (*sealed, error) {
	s, err := p.verifyOnce(n, last)
	if err != nil && !errors.Is(err, ErrBeyondLog) {
		s, err = p.verifyOnce(n, last)
	}
	return s, err
}

func (p *opener) verifyOnce(n, last uint64) (*sealed, error) {
	if n > last {
		return nil, p.verifyBeyond(n, last)
	}
	var digest archive.Digest // of a record that may be large: on another core
	var digestErr error
	var wg sync.WaitGroup
	wg.Go(func() { digest, digestErr = p.recordDigest(n, last) })
	s, err := verifySeal(p.dir(n), p.r.ID, n, p.owners, p.verified)
	wg.Wait()
	if err != nil {
		return nil, err
	}
	found := &sealed{seal: *s, dir: p.dir(n)}
	err = digestErr
	if err == nil && digest != s.Digest {
		err = p.otherRecord(found, last, digest)
	}
	if err != nil {
		if p.witness == nil && !p.ofAnotherLog(s) {
			p.witness = found
		}
		return nil, err
	}
	return found, nil
}

// verifyBeyond says what is wrong with an index of a record that the log does not have. The
// error wraps ErrBeyondLog where that is all: a sound index tells that the record was there.
func (p *opener) verifyBeyond(n, last uint64) error {
	s, err := verifySeal(p.dir(n), p.r.ID, n, p.owners, p.verified)
	if err == nil {
		err = checkMeta(&sealed{seal: *s, dir: p.dir(n)})
	}
	if err != nil {
		return fmt.Errorf("%w; so it does not prove that there were records behind %d, with which the log ends", err, last)
	}
	return fmt.Errorf("%w, which ends with record %d: `mkbackup check` says what is missing", ErrBeyondLog, last)
}

// checkMeta makes sure that an index that agrees with its seal was made with the record that
// the seal names.
func checkMeta(found *sealed) error {
	db, err := newDB(found.dir, found.Tables, found.Record)
	if err != nil {
		return err
	}
	defer db.Close()
	if db.meta.digest != found.Digest {
		return fmt.Errorf("%w: it contradicts its seal", ErrDamaged)
	}
	return nil
}

// otherRecord says that the log has another record, of that digest, than a sound index
// was made with.
func (p *opener) otherRecord(found *sealed, last uint64, digest archive.Digest) error {
	if err := checkMeta(found); err != nil {
		return err
	}
	digests := fmt.Sprintf("its record %d has the digest %s, not %s", found.Record, found.Digest, digest)
	if found.Record == last && p.ofAnotherLog(&found.seal) {
		return fmt.Errorf("%w: %s: `mkbackup check` says what to do", ErrOtherEnd, digests)
	}
	return fmt.Errorf("%w: %s", errOtherLog, digests)
}

// ofAnotherLog reports whether what can be read of the log says that its record is
// another one than the index was made with.
func (p *opener) ofAnotherLog(s *seal) bool {
	if next, err := p.r.RecordHeader(s.Record + 1); err == nil {
		return next.Previous != s.Digest
	}
	_, digest, err := p.r.ReadRecord(s.Record)
	return err == nil && digest != s.Digest
}

// recordDigest returns the digest of a record; the record behind it tells it faster.
// The error wraps errOutdated where both are gone.
func (p *opener) recordDigest(n, last uint64) (archive.Digest, error) {
	if n < last {
		if next, err := p.r.RecordHeader(n + 1); err == nil {
			return next.Previous, nil
		}
	}
	digest, err := p.r.RecordDigest(n)
	if n < last && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errOutdated, err)
	}
	return digest, err
}

// openSealed opens an index that was verified, unless it was exchanged for another
// one since: then its seal lists other tables. An error that is not of the index ends
// it: another index would meet the same.
func (p *opener) openSealed(dir string, files []tableFile, number uint64) (*DB, error) {
	db, err := newDB(dir, files, number)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errAgain
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	s, sealErr := readSeal(filepath.Join(dir, sealName), p.owners)
	if sealErr == nil && slices.Equal(s.Tables, files) {
		if err == nil {
			db.verified = p.verified
			return db, nil
		}
		p.reject(number, err)
	} else if err == nil {
		_ = db.Close() // of what was only read
	}
	return nil, errAgain
}

// build makes an index up to the record last, from a sealed one or from nothing.
func (p *opener) build(base *sealed, last uint64) (*DB, error) {
	db, err := p.buildPublic(base, last)
	if unwritable(err) {
		p.Log("the index cannot be kept in the repository: %v", err)
		db, err = p.buildPrivate(base, last)
	}
	if base != nil && errors.Is(err, ErrDamaged) {
		p.reject(base.Record, err)
		return nil, errAgain
	}
	return db, err
}

// unwritable reports whether it may be possible elsewhere.
func unwritable(err error) bool {
	for _, e := range [...]error{unix.EROFS, unix.EACCES, unix.EPERM, unix.ENOSPC, unix.EDQUOT, unix.ENOTDIR, unix.ENOLCK} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// buildPublic builds in the repository, and publishes where that is wanted.
func (p *opener) buildPublic(base *sealed, last uint64) (*DB, error) {
	dir, err := p.r.TempDir("index-*")
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	b, problem, err := p.buildAt(dir, base, last)
	published := false
	if err == nil && problem == nil && !p.Temporary && !p.disputed {
		published, err = p.publish(b)
	}
	if err == nil && !published {
		return p.openTemporary(b, problem)
	}
	defer p.removeDir(dir) // with what was replaced, if anything
	if err != nil {
		return nil, err
	}
	return p.openSealed(p.dir(b.number), b.tables, b.number)
}

// removeDir removes a directory of files that nobody is going to open any more. It is a
// courtesy: NFS and FUSE keep a file that somebody has mapped, under another name, and
// its directory with it. What stays in the repository goes with the writer directory.
func (p *opener) removeDir(dir string) {
	if err := p.r.FS().RemoveAll(dir); err != nil {
		p.Log("not all of %s can be removed yet: %v", dir, err)
	}
}

// buildPrivate builds outside of the repository, where nobody else looks.
func (p *opener) buildPrivate(base *sealed, last uint64) (*DB, error) {
	dir, err := os.MkdirTemp("", "backupfs-index-*")
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	b, problem, err := p.buildAt(dir, base, last)
	if err != nil {
		p.removeDir(dir)
		return nil, err
	}
	return p.openTemporary(b, problem)
}

// openTemporary opens a finished index and removes its files, which stay in mapped
// memory until it is closed, however the process ends.
func (p *opener) openTemporary(b *builder, problem error) (*DB, error) {
	defer p.removeDir(b.dir)
	if w := p.witness; problem != nil && w != nil && w.Record > b.number {
		if db, err := newDB(w.dir, w.Tables, w.Record); err == nil {
			db.problem = problem
			return db, nil
		}
	}
	db, err := newDB(b.dir, b.tables, b.number)
	if err != nil {
		return nil, err
	}
	db.unkept, db.problem = true, problem
	return db, nil
}

// buildAt builds in dir. Where the index may be partial, problem says why it is.
func (p *opener) buildAt(dir string, base *sealed, last uint64) (b *builder, problem, err error) {
	if base == nil {
		b, problem, err = p.begin(dir)
	} else {
		b, err = p.clone(base, dir)
	}
	if err != nil {
		return nil, nil, err
	}
	if rest := p.catchUp(b, last); problem == nil {
		problem = rest
	}
	if endsOpen(problem) {
		b.close()
		return nil, nil, problem
	}
	if problem != nil && (!p.Partial || unwritable(problem) || b.number == 0 && p.witness == nil) {
		b.close()
		return nil, nil, withRemedy(problem)
	}
	if problem != nil {
		p.Log("the log cannot be read to its end: %v", problem)
	}
	if err = b.finish(problem == nil); err == nil && problem == nil && p.shrink {
		err = b.shrink()
	}
	if err != nil {
		b.close()
	}
	return b, problem, err
}

// LogError says that the log cannot be understood, and what to do about it.
type LogError struct{ Problem error }

// Error implements error.
func (e LogError) Error() string {
	return fmt.Sprintf("%v: `mkbackup check` says what is lost, and what to do", e.Problem)
}

// Unwrap returns the problem.
func (e LogError) Unwrap() error { return e.Problem }

// withRemedy adds to the damage of a log what to do about it.
func withRemedy(problem error) error {
	if unwritable(problem) {
		return problem
	}
	return LogError{problem}
}

// clone returns a builder in dir that has the tables of a sealed index: the same files
// where that is possible, else copies.
func (p *opener) clone(base *sealed, dir string) (*builder, error) {
	apart, err := linkTables(p.r.FS(), base, dir)
	if err != nil {
		return nil, err
	}
	if err := p.checkSpace(dir, p.spaceFrom(base, apart)); err != nil {
		return nil, err
	}
	if err := copyApart(p.r.FS(), base, apart, dir); err != nil {
		return nil, err
	}
	b, err := newBuilder(p.r.FS(), dir, slices.Clone(base.Tables), base.Record)
	if err == nil && b.meta.digest != base.Digest {
		b.close()
		return nil, fmt.Errorf("%w: it contradicts its seal", ErrDamaged)
	}
	return b, err
}

// linkTables gives dir the same files that a sealed index has as tables, and returns the
// tables with which it cannot: they are on another file system, say, or it has no hard
// links. The error is errAgain where one is gone.
func linkTables(fsys disk.FS, base *sealed, dir string) (apart []tableFile, err error) {
	for _, t := range base.Tables {
		err := fsys.Link(filepath.Join(base.dir, t.name()), filepath.Join(dir, t.name()))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errAgain
		}
		if err != nil {
			apart = append(apart, t)
		}
	}
	return apart, nil
}

// copyApart copies some tables of a sealed index to dir. The error is errAgain where one
// is gone.
func copyApart(fsys disk.FS, base *sealed, list []tableFile, dir string) error {
	for _, t := range list {
		err := copyFile(fsys, filepath.Join(base.dir, t.name()), filepath.Join(dir, t.name()))
		if errors.Is(err, fs.ErrNotExist) {
			return errAgain
		}
		if err != nil {
			return fmt.Errorf("index: %w", err)
		}
	}
	return nil
}

func copyFile(fsys disk.FS, from, to string) error {
	in, err := fsys.OpenFile(from, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := fsys.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(in, 0, math.MaxInt64)); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}

// begin returns a builder in dir that has the newest checkpoint applied. Where that
// is damaged, an older one, or the first records, may still be there: problem is
// then what is wrong with the newest.
func (p *opener) begin(dir string) (b *builder, problem, err error) {
	need, err := p.spaceAnew()
	if err == nil {
		err = p.checkSpace(dir, need)
	}
	if err != nil {
		return nil, nil, err
	}
	p.Progress.total.Store(int64(p.records[len(p.records)-1]))
	for before := p.records; ; {
		number := p.r.Checkpoint(before)
		if b, err = newBuilder(p.r.FS(), dir, nil, 0); err != nil || number == 0 {
			return b, problem, err
		}
		if err = p.applyRecord(b, number); err == nil {
			return b, problem, nil
		}
		b.close()
		if unwritable(err) || endsOpen(err) {
			return nil, nil, err
		}
		if problem == nil {
			problem = err
		}
		if err := p.emptyDir(dir); err != nil {
			return nil, nil, err
		}
		at, _ := slices.BinarySearch(before, number)
		before = before[:at]
	}
}

// emptyDir removes the tables that were written in vain.
func (p *opener) emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for i := 0; i < len(entries) && err == nil; i++ {
		err = p.r.FS().Remove(filepath.Join(dir, entries[i].Name()))
	}
	return err
}

// catchUp applies the log up to the record last.
func (p *opener) catchUp(b *builder, last uint64) error {
	p.Progress.total.Store(int64(last))
	for b.number < last {
		p.Progress.done.Store(int64(b.number))
		if p.Partial {
			if err := p.refuseReplaced(b.number + 1); err != nil {
				return err
			}
		}
		if err := p.applyRecord(b, b.number+1); err != nil {
			return err
		}
	}
	p.Progress.done.Store(int64(last))
	return nil
}

// refuseReplaced refuses a record of which the next one says that it was another, unless
// its own index was made with it. Without Partial the next one is refused.
func (p *opener) refuseReplaced(number uint64) error {
	next, err := p.r.RecordHeader(number + 1)
	if err != nil {
		return nil // there is none, or its turn will come
	}
	digest, err := p.r.RecordDigest(number)
	if err != nil || digest == next.Previous {
		return nil
	}
	if _, _, err := p.r.ReadRecord(number); err != nil {
		return err
	}
	if s, err := readSeal(filepath.Join(p.dir(number), sealName), p.owners); err == nil && s.Digest == digest {
		return nil
	}
	return fmt.Errorf("log record %d: record %d follows one with the digest %s, this has %s: one of the two was replaced", number, number+1, next.Previous, digest)
}

// applyRecord applies a record. The error is errAgain where it was deleted since
// the log was listed.
func (p *opener) applyRecord(b *builder, number uint64) error {
	r, err := p.r.OpenRecord(number)
	if errors.Is(err, fs.ErrNotExist) {
		if _, listed := slices.BinarySearch(p.records, number); listed {
			return errAgain
		}
	}
	if err != nil {
		return err
	}
	err = b.apply(lineCounter{r, &p.Progress.lines, p.Interrupted})
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	return err
}

// spaceMargin is what an index needs on its disk whatever it is.
const spaceMargin = 32 << 20

// spaceAnew returns the bytes that an index needs which is derived from the log alone:
// up to three times the stored bytes of that, while it is merged.
func (p *opener) spaceAnew() (int64, error) {
	need := int64(spaceMargin)
	for o, err := range p.r.Store().List("log/") {
		if err != nil {
			return 0, err
		}
		need += 3 * o.Stored
	}
	return need, nil
}

// spaceFrom returns the bytes that an index needs which goes on from another one: what
// is copied of that, and what is merged.
func (p *opener) spaceFrom(base *sealed, copied []tableFile) int64 {
	need := int64(spaceMargin)
	for _, t := range copied {
		need += t.Stored
	}
	level := planMerge(base.Tables, maxRuns-1)
	for _, t := range base.Tables {
		if t.Level <= level || p.shrink {
			need += t.Stored
		}
	}
	return need
}

// checkSpace refuses to fill the disk: others need it, too.
func (p *opener) checkSpace(dir string, need int64) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if free := int64(disk.Bavail) * disk.Frsize; free < need {
		return fmt.Errorf("index: %d bytes more are needed in %s: %w", need-free, dir, syscall.ENOSPC)
	}
	return nil
}

// publish seals a finished index and makes it visible. It reports false where it
// cannot be in the repository.
func (p *opener) publish(b *builder) (bool, error) {
	if err := writeSeal(b, p.r.ID); err != nil {
		return false, err
	}
	err := p.r.SettleRecord(b.number) // an index must not outlive the log that it covers
	if err == nil {
		err = p.rename(b.dir, b.number)
	}
	if err == nil {
		p.setOldAside(b.number, b.meta.begins)
		err = p.r.FS().SyncDir(p.r.IndexDir())
	}
	if errors.Is(err, fs.ErrNotExist) { // somebody has removed all indexes
		return false, errAgain
	}
	if unwritable(err) {
		p.Log("the index cannot be published: %v", err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.rebuild, p.shrink = false, false
	delete(p.bad, b.number)
	p.removeAside()
	return true, nil
}

// rename makes dir the index of a number. If there is one already it is replaced
// if it is bad; else the error is errAgain, for it may be used.
func (p *opener) rename(dir string, number uint64) error {
	target := p.dir(number)
	if err := p.makeIndexDir(); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	err := p.r.FS().Rename(dir, target)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("index: publish %s: %w", target, err)
	case !p.rebuild && !p.shrink && !p.bad[number]:
		return errAgain
	}
	if err := p.exchange(dir, number); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errAgain
}

// makeIndexDir makes the directory of the sealed indexes. Whoever sees an index in it
// knows that its own entry is on stable storage.
func (p *opener) makeIndexDir() error {
	if !p.first {
		return nil
	}
	err := p.r.FS().Mkdir(p.r.IndexDir(), 0o700)
	if errors.Is(err, fs.ErrExist) {
		if info, statErr := os.Stat(p.r.IndexDir()); statErr != nil || !info.IsDir() {
			return &fs.PathError{Op: "open", Path: p.r.IndexDir(), Err: unix.ENOTDIR}
		}
	} else if err != nil {
		return err
	}
	return p.r.FS().SyncDir(p.r.Dir())
}

// exchange puts dir in the place of an index, in one step where the file system can.
// The other one is in dir then, or set aside.
func (p *opener) exchange(dir string, number uint64) error {
	err := p.r.FS().Exchange(dir, p.dir(number))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		if err = p.setAside(number); err == nil {
			err = p.r.FS().Rename(dir, p.dir(number))
		}
	}
	if err != nil {
		return fmt.Errorf("index: replace %s: %w", p.dir(number), err)
	}
	return nil
}

// setOldAside sets indexes aside: all but the newest two; of those before number the ones
// that are known to be bad, or all where number's was built anew because they may be;
// those before the checkpoint that the log begins with, which nobody can go on with; and
// of those behind number the ones that prove nothing. What tells of other records than the
// log has stays, unless all is built anew.
// Whoever has one open goes on reading. It is a courtesy: what cannot be moved stays.
func (p *opener) setOldAside(number, begins uint64) {
	numbers, err := p.list()
	if err != nil {
		p.Log("old indexes stay: %v", err)
		return
	}
	kept, synced := 0, false
	stays := func(n uint64) bool {
		switch {
		case n < begins:
			return false
		case n > number:
			return !p.bad[n] && !p.rebuild || !p.provesNothing(n, number)
		case p.rebuild:
			return n == number
		case !p.bad[n] && kept <= 2:
			return true
		}
		return p.tellsOther(n, number)
	}
	for _, n := range numbers {
		if !p.bad[n] {
			kept++
		}
		if stays(n) {
			continue
		}
		if n < begins && !synced { // only the new index may be left: it must not go with the others in a crash
			if err := p.r.FS().SyncDir(p.r.IndexDir()); err != nil {
				p.Log("old indexes stay: %v", err)
				return
			}
			synced = true
		}
		if err := p.setAside(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.Log("index %d stays: %v", n, err)
		}
	}
}

// tellsOther reports whether the seal of an index names another record than the log has,
// which goes up to last.
func (p *opener) tellsOther(n, last uint64) bool {
	s, err := readSeal(filepath.Join(p.dir(n), sealName), p.owners)
	if err != nil || n >= last || s.Schema != schema || s.Repository != p.r.ID {
		return false
	}
	digest, err := p.recordDigest(n, last)
	return err == nil && digest != s.Digest
}

// provesNothing reports whether what is there by the number of a record behind last, the end
// of the log, is no index of that record. It looks anew: another process may have committed
// the record and published its index meanwhile. One that is damaged, but has a seal of this
// repository, may be of a record that the log has lost: it stays, unless all is built anew.
func (p *opener) provesNothing(n, last uint64) bool {
	s, err := readSeal(filepath.Join(p.dir(n), sealName), p.owners)
	if err != nil || s.Repository != p.r.ID || s.Record != n {
		return !archive.IsInconclusive(err)
	}
	if !p.rebuild || s.Schema != schema {
		return false
	}
	_, err = p.verify(n, last)
	return !errors.Is(err, ErrBeyondLog) && !archive.IsInconclusive(err)
}

// setAside takes a sealed index away: all of it at once for whoever looks. Its files
// may be removed once the directory of the indexes is synced; a crash before could
// bring it back, and only a part of the files.
func (p *opener) setAside(number uint64) (err error) {
	if p.aside == "" {
		if p.aside, err = p.r.TempDir("old-*"); err != nil {
			return err
		}
	}
	return p.r.FS().Rename(p.dir(number), filepath.Join(p.aside, dirName(number)))
}

// removeAside removes what was set aside.
func (p *opener) removeAside() {
	if p.aside != "" {
		p.removeDir(p.aside)
		p.aside = ""
	}
}
