package fs

import (
	"sync/atomic"
	"time"

	"github.com/backupfs/backupfs/archive"
)

// counters are what a mount has done. They are counted where it is done, by one
// atomic addition each.
type counters struct {
	reads, readRaw    atomic.Int64
	pushes, pushedRaw atomic.Int64
	failures          atomic.Int64
	refreshFailures   atomic.Int64
}

// Metrics are what a mount has done since it was made, and what it shows now.
type Metrics struct {
	Reads           int64 // READ requests that were answered
	ReadRaw         int64 // raw bytes of those answers
	Pushes          int64 // files stored in the kernel's page cache ahead of who reads
	PushedRaw       int64 // raw bytes of those
	Failures        int64 // requests of any kind answered with EIO
	RefreshFailures int64 // times that new generations could not be shown, each tried again, or that the log had lost its end
	Frames          archive.ReaderCounts
	Sources         []SourceMetrics // those shown, in no order
}

// SourceMetrics are what a mount shows of a source.
type SourceMetrics struct {
	Source      string // "" is the unnamed one
	Generations int
	Newest      time.Time // of the newest generation; the zero Time where there is none
}

// Metrics returns the metrics of this moment, also of a mount that has ended. It
// takes no lock that a request holds for long.
func (m *Mount) Metrics() Metrics {
	return Metrics{
		Reads:           m.counters.reads.Load(),
		ReadRaw:         m.counters.readRaw.Load(),
		Pushes:          m.counters.pushes.Load(),
		PushedRaw:       m.counters.pushedRaw.Load(),
		Failures:        m.counters.failures.Load(),
		RefreshFailures: m.counters.refreshFailures.Load(),
		Frames:          m.parts.Counts(),
		Sources:         m.sourceMetrics(),
	}
}

// sourceMetrics counts the generations that the mount shows.
func (m *Mount) sourceMetrics() []SourceMetrics {
	c := m.server.Load().catalog.Load()
	if g := m.pinned; g.Number != 0 {
		return []SourceMetrics{{Source: g.Source, Generations: 1, Newest: g.Time}}
	}
	var list []SourceMetrics
	if len(c.root.generations) > 0 || len(c.sources) == 0 {
		list = append(list, c.root.metrics(m.options.Source))
	}
	for _, l := range c.sources {
		list = append(list, l.metrics(l.generations[0].Source)) // a source without any is not listed
	}
	return list
}

// metrics counts the generations of a listing, which are those of a source.
func (l *listing) metrics(source string) SourceMetrics {
	s := SourceMetrics{Source: source, Generations: len(l.generations)}
	if n := len(l.generations); n > 0 {
		s.Newest = l.generations[n-1].Time
	}
	return s
}
