package fs

import (
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// After a failure the log is left alone for a while: a second at first, and up
// to maxRetry, because trying may mean to read much of the log.
const (
	minRetry = time.Second
	maxRetry = 5 * time.Minute
)

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
	s := &snapshot{catalog: c, db: db}
	s.refs.Store(1)
	return s, nil
}

func (m *Mount) readCatalog(db *index.DB) (*catalog, error) {
	generations, err := db.Generations()
	if err != nil {
		return nil, err
	}
	return newCatalog(generations, m.options.Source, m.options.NameFormat, db.Number())
}

// show makes a snapshot the newest: first for who knows what to look for, then for
// all, and then it is said.
func (m *Mount) show(s *snapshot) {
	m.snapshots.push(s)
	if server := m.server.Load(); server != nil {
		server.show(s)
	}
	m.refreshes.number.Store(s.db.Number())
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

// refresh shows what was committed since the last time, and reports whether more is
// shown then than was up to the record seen. Readers in flight go on with what they
// have. A failure changes nothing and is logged once.
func (m *Mount) refresh(seen uint64) bool {
	m.refreshes.mu.Lock()
	defer m.refreshes.mu.Unlock()
	if m.refreshes.number.Load() > seen {
		return true // somebody else was faster
	}
	if time.Now().Before(m.refreshes.retryAt) {
		return false
	}
	s, err := m.openNewer()
	if errors.Is(err, errEnded) {
		return false
	}
	if err != nil {
		m.failRefresh(err)
		return false
	}
	m.refreshes.retry = 0
	if s == nil {
		return false
	}
	m.show(s)
	return true
}

// openNewer opens a newer snapshot, nil where the log has no new record, or only a
// checkpoint, which changes nothing: its index, which has to be made from the ground,
// is left to whoever made it.
func (m *Mount) openNewer() (*snapshot, error) {
	shown := m.refreshes.number.Load()
	kind, err := m.kindOf(shown + 1)
	if errors.Is(err, fs.ErrNotExist) {
		return m.openBehind(shown)
	}
	if err != nil {
		return nil, err
	}
	if kind == archive.KindCheckpoint && !index.Published(m.repository, shown+1) {
		if _, err := m.kindOf(shown + 2); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	return m.openSnapshot(false)
}

// openBehind is openNewer where the next record is not there. The records may be gone
// up to a checkpoint, the one of the snapshot that is shown with them.
func (m *Mount) openBehind(shown uint64) (*snapshot, error) {
	if _, err := m.kindOf(shown); !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	last, err := m.repository.Last()
	if err != nil || last <= shown {
		return nil, err
	}
	return m.openSnapshot(false)
}

// kindOf returns the kind of a log record.
func (m *Mount) kindOf(number uint64) (archive.Kind, error) {
	record, err := m.repository.OpenRecord(number)
	if err != nil {
		return "", err
	}
	return record.Header().Kind, record.Close()
}

func (m *Mount) failRefresh(err error) {
	m.counters.refreshFailures.Add(1)
	r := &m.refreshes
	if r.retry == 0 {
		m.log.print("new generations are not shown: %v", err)
	}
	r.retry = min(max(2*r.retry, minRetry), maxRetry)
	r.retryAt = time.Now().Add(r.retry)
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
		m.snapshots.forget()
		m.refresh(m.refreshes.number.Load())
		if m.server.Load().outdated.Load() {
			m.reconnect()
		}
		m.server.Load().tellKernel()
	}
}

// tellKernel makes the kernel drop what it remembers of listings that changed.
// It would do so by itself after a moment; this is for those who look sooner.
// No lock is held here: the kernel may wait for an answer of ours first.
func (s *server) tellKernel() {
	before, now := s.told, s.catalog.Load()
	if s.m.pinned.Number != 0 || now == before {
		return
	}
	s.told = now
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
