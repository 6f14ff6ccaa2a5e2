package backup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// scanner reads directories of the source, and what they were in the generation
// before, ahead of the comparison. It is safe for concurrent use.
type scanner struct {
	ctx     context.Context
	workers chan struct{} // a slot for each directory or share of one that is read right now
	view    index.View    // of the generation before
}

// Two to four statx calls at once are the best; more are slower (measured).
const scanWorkers = 4

// scanAhead is how many subdirectories are read before their turn comes.
const scanAhead = 8

// scanShare is how many entries of a large directory one worker takes.
const scanShare = 1024

// newScanner returns a scanner of so many workers at the most; 0 means scanWorkers.
func newScanner(ctx context.Context, threads int) *scanner {
	workers := scanWorkers
	if threads > 0 {
		workers = min(workers, threads)
	}
	return &scanner{ctx: ctx, workers: make(chan struct{}, workers)}
}

// scanned is a directory that was read, or is being read.
type scanned struct {
	done    chan struct{} // closed when the fields below are set
	fd      int           // open; -1 where that failed
	entries []scannedEntry
	err     error

	before    []index.Dirent // what was in it, ordered by name
	beforeErr error
}

type scannedEntry struct {
	name  string
	inode       // where err is not nil, only what lookAgain found
	err   error // of statx
}

// start begins to read the directory name of parent, which must stay open until
// it is done. Where only is not nil, just those names are looked at. old is what
// it was in the generation before, nil where it was not there.
func (s *scanner) start(parent int, name string, only []string, old *index.Dirent) *scanned {
	d := &scanned{done: make(chan struct{}), fd: -1}
	go func() {
		defer close(d.done)
		s.workers <- struct{}{}
		d.before, d.beforeErr = listBefore(s.view, old)
		d.err = s.read(d, parent, name, only)
		<-s.workers
	}()
	return d
}

// listBefore returns the entries that a directory had, ordered by name. What was
// no directory had none.
func listBefore(view index.View, old *index.Dirent) ([]index.Dirent, error) {
	if old == nil || old.Dir == 0 {
		return nil, nil
	}
	var list []index.Dirent
	err := view.List(old.Dir, "", func(e index.Dirent) bool {
		list = append(list, e)
		return true
	})
	return list, err
}

// was returns what an entry of the directory was before, nil where it was not there.
func (d *scanned) was(name string) *index.Dirent {
	i, there := slices.BinarySearchFunc(d.before, name, func(e index.Dirent, name string) int { return strings.Compare(e.Name, name) })
	if !there {
		return nil
	}
	return &d.before[i]
}

// close waits for the directory and closes it.
func (d *scanned) close() {
	<-d.done
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

func (s *scanner) read(d *scanned, parent int, name string, only []string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	list, err := d.open(parent, name, only)
	if err != nil {
		return err
	}
	d.entries = make([]scannedEntry, len(list))
	s.stat(d, list)
	d.lookAgain()
	return s.ctx.Err()
}

// open opens the directory and returns the names to look at.
func (d *scanned) open(parent int, name string, only []string) ([]string, error) {
	if only != nil {
		fd, err := enterBeneath(parent, name)
		if err == nil {
			d.fd = fd
		}
		return only, err
	}
	fd, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, &patience{})
	if err != nil {
		return nil, err
	}
	d.fd = fd
	return names(fd)
}

// stat fills the entries, with several workers where there are many.
func (s *scanner) stat(d *scanned, list []string) {
	var shares sync.WaitGroup
	for start := scanShare; start < len(list); start += scanShare {
		select {
		case s.workers <- struct{}{}:
			shares.Go(func() {
				s.statShare(d, list, start, min(start+scanShare, len(list)))
				<-s.workers
			})
		default:
			s.statShare(d, list, start, min(start+scanShare, len(list)))
		}
	}
	s.statShare(d, list, 0, min(scanShare, len(list)))
	shares.Wait()
}

func (s *scanner) statShare(d *scanned, list []string, start, end int) {
	for i := start; i < end && s.ctx.Err() == nil; i++ {
		e := &d.entries[i]
		e.name = list[i]
		e.inode, e.err = statBeneath(d.fd, e.name)
	}
}

// lookAgain finds out of the entries whose attributes cannot be read what excludes go by:
// which are directories, and which are mounts. Nobody but its user may look at a mount of
// FUSE, root included, and nobody at one that has lost its server.
func (d *scanned) lookAgain() {
	unseen := func(e scannedEntry) bool { return e.err != nil && !errors.Is(e.err, unix.ENOENT) }
	if !slices.ContainsFunc(d.entries, unseen) {
		return
	}
	dirs := directories(d.fd)
	for i := range d.entries {
		e := &d.entries[i]
		if !unseen(*e) {
			continue
		}
		if dirs[e.name] {
			e.Type = archive.TypeDir
		}
		e.mounted = mountedBeneath(d.fd, e.name, dirs[e.name])
	}
}
