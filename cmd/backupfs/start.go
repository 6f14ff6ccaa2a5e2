package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/fs"
)

// ownMemory is what the process may use besides the cache: the index, buffers
// of requests under way, and garbage.
const ownMemory = 44 << 20

// leastHeap is what Go's heap may use of it when more frames are in use than the cache
// has room for.
const leastHeap = 32 << 20

// start mounts in this process where that is asked for, and else in one in the
// background.
func (c *config) start() error {
	ready, background := readyPipe()
	switch {
	case background:
		return c.serveInBackground(ready)
	case c.foreground:
		return c.serve(printMessage, func() error { return notify("READY=1") })
	}
	return startBackground()
}

// printMessage prints a message to stderr.
func printMessage(format string, a ...any) {
	fmt.Fprintln(os.Stderr, "backupfs:", cli.OneLine(fmt.Sprintf(format, a...)))
}

// serve mounts and returns when the mount has ended. ready is called once it
// is up. Until mounting begins a signal ends the process as if nobody cared for it:
// opening a large repository whose index is lost takes a while. From then on it
// unmounts: a mount whose process was killed is dead, but stays.
func (c *config) serve(log func(string, ...any), ready func() error) error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // a mount outlives who reads its messages
	c.limitHeap(0)
	metrics, err := listenMetrics(c.metrics)
	if err != nil {
		return err
	}
	defer metrics.close()
	repository, err := archive.Open(c.repository)
	if err != nil {
		return err
	}
	var signals <-chan os.Signal
	c.Log, c.WatchFrames = log, c.limitHeap
	c.Mounting = func() { signals = cli.Catch(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) }
	mount, err := fs.New(repository, c.mountpoint, c.Options)
	if err != nil {
		_ = repository.Close() // nothing was written to it but an index, which is published
		return err
	}
	metrics.serve(mount, log)
	ended := make(chan struct{})
	go func() {
		mount.Wait()
		_ = repository.Close() // not before: an index may be on its way into it
		close(ended)
	}()
	if err := ready(); err != nil {
		log("%v", err)
	}
	select {
	case <-ended:
		return mount.Err()
	case <-signals:
		return c.unmount(mount, log, ended)
	}
}

// limitHeap holds Go's heap to what decoded frames, which lie outside of it, leave of
// the memory for the cache and for the rest.
func (c *config) limitHeap(frames int64) {
	debug.SetMemoryLimit(max(c.CacheSize+ownMemory-frames, leastHeap))
}

// unmount ends the mount after a signal. Where it is busy, what it has begun in the
// repository is left to the next one who writes there.
func (c *config) unmount(mount *fs.Mount, log func(string, ...any), ended <-chan struct{}) error {
	if err := notify("STOPPING=1"); err != nil {
		log("%v", err)
	}
	busy, err := mount.Unmount()
	switch {
	case err != nil:
		return err
	case busy:
		log("%s was busy: detached; the programs that use it get errors", c.mountpoint)
		return nil
	}
	<-ended
	return mount.Err()
}
