package fs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// backoff is the pause between attempts that may fail: minRetry at first, and up to
// maxRetry, because trying may mean to read much of the log, or of an index. The zero
// value is no pause.
type backoff struct {
	pause time.Duration // since the last attempt
	until time.Time     // when it is over
	why   string        // the last failure
}

const (
	minRetry = time.Second
	maxRetry = 5 * time.Minute
)

// begin begins a pause, twice as long as the one before.
func (b *backoff) begin() {
	b.pause = min(max(2*b.pause, minRetry), maxRetry)
	b.until = time.Now().Add(b.pause)
}

// isNews reports whether a failure is another one than the last one.
func (b *backoff) isNews(err error) bool {
	before := b.why
	b.why = err.Error()
	return b.why != before
}

// lasts reports whether the pause is not over.
func (b *backoff) lasts() bool { return time.Now().Before(b.until) }

// grace is how long a dropped generation is still found by its name.
const grace = time.Second

// openSnapshot opens the index at the end of the log. Where partial is set and
// the log is damaged, it is the index of what can be read of the log.
func (m *Mount) openSnapshot(partial bool) (*snapshot, error) {
	db, err := index.Open(m.repository, index.Options{Log: m.options.Log, Partial: partial, Interrupted: m.connections.interrupted})
	if err != nil {
		return nil, err
	}
	c, err := m.readCatalog(db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &snapshot{catalog: c, db: db, opened: time.Now()}
	s.refs.Store(1)
	return s, nil
}

func (m *Mount) readCatalog(db *index.DB) (*catalog, error) {
	generations, err := db.Generations()
	if err != nil {
		return nil, err
	}
	if err := checkDirectories(db.LastDir()); err != nil {
		return nil, err
	}
	return newCatalog(generations, m.options.Source, m.options.NameFormat, db.Number())
}

// show makes a snapshot the newest: first for who knows what to look for, then for
// all, and then it is said.
func (m *Mount) show(s *snapshot) {
	m.lineage.Load().snapshots.push(s, m.pinned.Number)
	m.announce(s)
}

// announce makes known what the newest snapshot is.
func (m *Mount) announce(s *snapshot) {
	if server := m.server.Load(); server != nil {
		server.show(s)
	}
	r := &m.refreshes
	r.stamp, _ = m.repository.RecordStamp(s.db.Number()) // without one the record is looked at again
	r.end = s.db.Number()
	r.shows.Add(1)
}

// replaced is a catalog whose generations are still found for a moment: until
// then somebody may be on the way there from a symlink "latest" of that time.
type replaced struct {
	*catalog
	until time.Time
}

// justDropped finds a generation in a listing as it was a moment ago.
func (s *server) justDropped(node uint64, name string) (listed, bool) {
	before := s.before.Load()
	if before == nil || time.Now().After(before.until) {
		return listed{}, false
	}
	l := before.listing(node)
	if l == nil {
		return listed{}, false
	}
	e, ok := l.named[name]
	return e, ok && e.mode == syscall.S_IFDIR && e.generation.Number != 0
}

// refresh shows what was committed since the last time, and reports whether something
// was shown since so many times were counted. Readers in flight go on with what they
// have. A failure changes nothing and is logged once, unless another one follows. pressing is set where a request
// fails without something newer.
func (m *Mount) refresh(seen uint64, pressing bool) bool {
	m.refreshes.mu.Lock()
	defer m.refreshes.mu.Unlock()
	if m.refreshes.shows.Load() > seen {
		return true // somebody else was faster
	}
	if m.refreshes.retry.lasts() && (!pressing || !m.mayPress()) {
		return false
	}
	s, err := m.openNewer()
	if errors.Is(err, errOtherHistory) {
		err = m.startOver(err)
	}
	if errors.Is(err, errEnded) {
		return false
	}
	if err != nil {
		m.failRefresh(err)
		return false
	}
	m.refreshes.retry = backoff{}
	if s == nil {
		return false
	}
	m.refreshes.reopen = backoff{}
	m.show(s)
	return true
}

// mayPress reports whether what is pressing need not wait for the end of the pause after
// a failure: that was a while ago, or there is an index that was not there then.
func (m *Mount) mayPress() bool {
	r := &m.refreshes
	return time.Since(r.failed) >= minRetry || index.Newest(m.repository) > r.newest
}

// reopen opens the index of what is shown anew after a request has found it damaged:
// somebody may have rebuilt it, or else index.Open does. Nothing else is shown then.
func (m *Mount) reopen() {
	r := &m.refreshes
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.damaged.Load() || r.reopen.lasts() {
		return
	}
	newest := m.lineage.Load().snapshots.at(0)
	defer newest.release()
	r.reopen.begin()
	s, err := m.openSnapshot(true)
	r.damaged.Store(false)
	switch {
	case errors.Is(err, errEnded):
	case err != nil:
		m.log.once("the index, which is damaged, cannot be opened anew: %v", err)
	case s.db.RecordDigest() != newest.db.RecordDigest(): // refresh shows it, if it may
		s.release()
	default:
		m.show(s)
	}
}

// errOtherHistory says that what is shown is not, or not any more, in the log.
var errOtherHistory = errors.New("the log has lost records that are shown, and has others by their numbers")

// openNewer opens a newer snapshot, nil where the log has no new record, or only a
// checkpoint, which changes nothing: its index, which has to be made from the ground,
// is left to whoever made it. The error is errOtherHistory where the log does not go on
// from what is shown.
func (m *Mount) openNewer() (*snapshot, error) {
	newest := m.lineage.Load().snapshots.at(0)
	if newest == nil {
		return nil, errEnded
	}
	defer newest.release()
	shown := newest.db.Number()
	next, err := m.repository.RecordHeader(shown + 1)
	if errors.Is(err, fs.ErrNotExist) {
		return m.openBehind(newest)
	}
	if err != nil {
		return nil, err
	}
	if next.Previous != newest.db.RecordDigest() {
		return nil, errOtherHistory
	}
	if shown == 0 {
		if err := m.checkRepository(); err != nil {
			return nil, err
		}
	}
	if next.Kind == archive.KindCheckpoint && !index.Published(m.repository, shown+1) {
		if _, err := m.repository.RecordHeader(shown + 2); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	return m.openAbove(shown)
}

// openAbove opens the index at the end of the log, which must have a record above that
// number: one that has vanished again must not make generations vanish from the mount.
func (m *Mount) openAbove(number uint64) (*snapshot, error) {
	s, err := m.openSnapshot(false)
	if err == nil && s.db.Number() <= number {
		s.release()
		return nil, fmt.Errorf("the log of %s has just lost its last records: is its disk mounted?", m.repository.Dir())
	}
	return s, err
}

// openBehind is openNewer where the record behind the newest snapshot is not there. The
// records may be gone up to a checkpoint, the one of that snapshot with them.
func (m *Mount) openBehind(newest *snapshot) (*snapshot, error) {
	shown := newest.db.Number()
	stamp, err := m.repository.RecordStamp(shown)
	if err == nil {
		return nil, m.checkShown(newest, stamp)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	records, err := m.repository.Records()
	if err != nil {
		return nil, err
	}
	if len(records) == 0 || records[len(records)-1] <= shown {
		return nil, m.checkEnd(newest, records)
	}
	s, err := m.openAbove(shown)
	if err == nil && !s.follows(newest.catalog) {
		s.release()
		return nil, errOtherHistory
	}
	return s, err
}

// checkShown checks that the record of the newest snapshot is the one that it was made
// from. It is read only where its stamp has changed. One that is damaged is no other.
func (m *Mount) checkShown(newest *snapshot, stamp archive.RecordStamp) error {
	r := &m.refreshes
	if stamp != r.stamp {
		_, digest, err := m.repository.ReadRecord(newest.db.Number())
		switch {
		case archive.IsInconclusive(err):
			return err
		case err == nil && digest != newest.db.RecordDigest():
			return errOtherHistory
		}
		r.stamp = stamp
	}
	r.end = newest.db.Number()
	return nil
}

// checkEnd is given the records of a log that ends before what is shown. That stays, for
// somebody may need it, until a record behind that end is another one than it was: lost
// ones may be put back one after the other. Where the log is empty, its disk may not be
// mounted for the moment.
func (m *Mount) checkEnd(shown *snapshot, records []uint64) error {
	end, last := m.refreshes.end, uint64(0)
	if len(records) > 0 {
		last = records[len(records)-1]
	}
	if last != end && last > 0 {
		if err := m.checkRepository(); err != nil {
			return err
		}
	}
	for _, number := range records {
		if number <= end {
			continue
		}
		h, err := m.repository.RecordHeader(number)
		if err != nil {
			return err
		}
		if shown.lacks(h) {
			return errOtherHistory
		}
		if shown.mayLack(h) {
			last = min(last, number-1) // it is looked at again
		}
	}
	if last < end {
		m.counters.refreshFailures.Add(1)
		m.log.print("the log of %s ends with record %d, before record %d, which is shown (is its disk mounted?): that stays, without "+
			"anything newer, until the lost records are back; or unmount, and mount it anew", m.repository.Dir(), last, shown.last)
	}
	m.refreshes.end = last
	return nil
}

// startOver makes what the log says now the newest, for a connection that poll puts in
// the place of the mounted one. Where that cannot be, the mount goes on with what it
// shows, and the error says so.
func (m *Mount) startOver(why error) error {
	if err := m.checkRepository(); err != nil {
		return err
	}
	if m.pinned.Number != 0 || !canReconnect(m.mountOptions()) {
		return fmt.Errorf("%w: unmount, and mount it anew", why)
	}
	s, err := m.openAbove(0)
	if err != nil {
		return err
	}
	l := newLineage()
	l.snapshots.push(s, m.pinned.Number)
	m.lineageMu.Lock()
	old := m.lineage.Swap(l)
	m.lineageMu.Unlock()
	m.past = append(m.past, old)
	old.leave()
	m.announce(s)
	return nil
}

// useLineage returns the current lineage for a connection, which leaves it at its end.
func (m *Mount) useLineage() *lineage {
	m.lineageMu.Lock()
	defer m.lineageMu.Unlock()
	l := m.lineage.Load()
	l.users.Add(1)
	return l
}

// forget gives the memory of what was read of the indexes back to the kernel.
func (m *Mount) forget() {
	m.refreshes.mu.Lock()
	defer m.refreshes.mu.Unlock()
	m.past = slices.DeleteFunc(m.past, (*lineage).isClosed)
	for _, l := range m.past {
		l.snapshots.forget()
	}
	m.lineage.Load().snapshots.forget()
}

// checkRepository returns an error unless the repository is known to be the one that was
// mounted.
func (m *Mount) checkRepository() error {
	now, err := archive.Open(m.repository.Dir())
	if err != nil {
		return err
	}
	defer now.Close()
	if now.ID != m.repository.ID {
		return fmt.Errorf("%s is another repository than the one that was mounted: unmount, and mount it anew", m.repository.Dir())
	}
	return nil
}

func (m *Mount) failRefresh(err error) {
	m.counters.refreshFailures.Add(1)
	r := &m.refreshes
	if r.retry.isNews(err) {
		m.log.print("new generations are not shown: %v", err)
	}
	if !r.retry.lasts() {
		r.retry.begin()
	}
	r.failed, r.newest = time.Now(), index.Newest(m.repository)
}

// poll keeps the mount up to date until its last connection has ended.
func (m *Mount) poll() {
	tick, release := time.NewTicker(pollInterval), time.NewTicker(releaseInterval)
	defer tick.Stop()
	defer release.Stop()
	for {
		select {
		case <-m.connections.ended:
			return
		case <-release.C:
			m.parts.ReleaseRemoved()
			continue
		case <-tick.C:
		}
		m.forget()
		m.refresh(m.refreshes.shows.Load(), false)
		m.reopen()
		if m.server.Load().outdated.Load() {
			m.reconnect()
		}
		m.server.Load().tellKernel()
	}
}

// tellKernel makes the kernel drop what it remembers of listings that changed.
// It would do so by itself after a moment; this is for those who look sooner.
// The kernel may wait for an answer of ours first, or for ever for a program that reads a
// listing into memory that it does not get. So it is told in the background, of one
// change at a time.
func (s *server) tellKernel() {
	if !s.telling.TryLock() {
		return
	}
	before, now := s.told, s.catalog.Load()
	if s.m.pinned.Number != 0 || now == before {
		s.telling.Unlock()
		return
	}
	s.told = now
	go func() {
		defer s.telling.Unlock()
		s.tellListings(before, now)
	}()
}

// tellListings compares two states of all listings.
func (s *server) tellListings(before, now *catalog) {
	s.tellListing(before.root, now.root)
	for node, l := range before.sources {
		s.tellListing(l, now.sources[node])
	}
}

// tellListing compares two states of a listing; now is nil where it is gone.
func (s *server) tellListing(before, now *listing) {
	if now == nil {
		now = &listing{}
	}
	for name, e := range before.named {
		if now.named[name].node != e.node {
			s.fuse.EntryNotify(before.node, name)
		}
	}
	s.fuse.InodeNotify(before.node, 0, 0)
}
