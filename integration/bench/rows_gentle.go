package main

import (
	"errors"
	"os"
	"sync/atomic"

	"github.com/backupfs/backupfs/internal/measure"
)

// otherWork keeps both cores busy, and reads all files of a tree twice.
const otherWork = `for k in 1 2; do tar -cf - -C "$1" . | sha256sum & done; wait`

// rowGentle measures how much slower a server's other work gets while it is backed up.
func (b *bench) rowGentle() error {
	if err := b.warm(); err != nil {
		return err
	}
	work := func() (measure.Cost, error) { return measure.Run(measure.Shell(otherWork, b.src)) }
	costs, err := measure.Alternate(b.repeat(), work,
		func() (measure.Cost, error) { return b.beside(work) },
		func() (measure.Cost, error) {
			return b.beside(work, "--nice", "19", "--ionice", "idle", "--threads", "1")
		})
	if err != nil {
		return err
	}
	b.ratio("other work beside a first create", costs[1], "alone", costs[0], 0)
	b.ratio("- create with --nice 19 --ionice idle --threads 1", costs[2], "alone", costs[0], 1.1)
	return nil
}

// beside measures work while first backups of the tree run with the flags, one after
// another.
func (b *bench) beside(work contestant, flags ...string) (measure.Cost, error) {
	var ended atomic.Bool
	failed := make(chan error, 1)
	go func() {
		var err error
		for err == nil && !ended.Load() {
			err = b.createInto(b.path("gentle"), flags...)
		}
		failed <- err
	}()
	cost, err := work()
	ended.Store(true)
	return cost, errors.Join(err, <-failed, os.RemoveAll(b.path("gentle")))
}

// createInto makes a new repository with one generation of the tree.
func (b *bench) createInto(repository string, flags ...string) error {
	if err := os.RemoveAll(repository); err != nil {
		return err
	}
	if _, _, err := b.product.Mkbackup("init", repository); err != nil {
		return err
	}
	_, _, err := b.product.Mkbackup(append([]string{"create", repository, "--root", b.src, "/"}, flags...)...)
	return err
}
