package main

import (
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/backupfs/backupfs/cmd/internal/cli"
	"golang.org/x/sys/unix"
)

// readyVariable tells the background process which descriptor is the pipe on
// which it says that the mount is ready.
const readyVariable = "BACKUPFS_READY_FD"

// exitError is the exit code of a background process that did not become
// ready. It has printed the reason.
type exitError int

// Error implements error.
func (e exitError) Error() string {
	return fmt.Sprintf("the background process exited with %d", int(e))
}

// startBackground runs this program again, in a session of its own, and returns
// when the mount is ready or has failed.
func startBackground() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	child := exec.Command(program, os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), readyVariable+"=3")
	child.ExtraFiles = []*os.File{write}
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The mount must not hold for years what the caller happens to have open, a lock say.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // before Linux 5.11 it does
	err = child.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	stop := forwardSignals(child.Process)
	defer stop()
	if ready, err := io.ReadAll(read); err == nil && len(ready) > 0 {
		return child.Process.Release()
	}
	return backgroundFailure(child.Wait())
}

// forwardSignals passes on the signals of a user who loses patience before the
// mount is ready.
func forwardSignals(p *os.Process) (stop func()) {
	signals := cli.Catch(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		for range signals {
			_ = p.Signal(syscall.SIGTERM) // it may have ended by itself
		}
	}()
	return func() { signal.Stop(signals) }
}

// backgroundFailure makes an error of how a process ended that did not become
// ready.
func backgroundFailure(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitError(exit.ExitCode())
	}
	return fmt.Errorf("the background process ended before the mount was ready: %w", err)
}

// readyPipe returns the pipe of a background process, false in any other one.
func readyPipe() (*os.File, bool) {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return nil, false
	}
	_ = os.Unsetenv(readyVariable) // children need not know
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "ready"), true
}

// serveInBackground mounts in the background process. Messages go to stderr as
// long as the parent waits, and then to the system log.
func (c *config) serveInBackground(ready *os.File) error {
	var log backgroundLog
	err := c.serve(log.print, func() error {
		log.detach()
		return leaveParent(ready)
	})
	if err != nil && log.detached() {
		log.print("%v", err)
	}
	return err
}

// leaveParent lets go of the terminal and says that the mount is ready.
func leaveParent(ready *os.File) error {
	defer ready.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("leave the terminal: %w", err)
		}
	}
	_, err = ready.WriteString("ready\n")
	return err
}

// backgroundLog prints messages until it is detached, and then sends them to
// the system log; where there is none they are lost. It is safe for concurrent
// use.
type backgroundLog struct {
	mu     sync.Mutex
	system bool
	writer *syslog.Writer // nil until the first message that finds a system log
}

func (l *backgroundLog) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.system = true
}

func (l *backgroundLog) detached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.system
}

func (l *backgroundLog) print(format string, a ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.system {
		printMessage(format, a...)
		return
	}
	if l.writer == nil {
		var err error
		if l.writer, err = syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "backupfs"); err != nil {
			l.writer = nil
			return
		}
	}
	_ = l.writer.Warning(cli.OneLine(fmt.Sprintf(format, a...))) // it connects again by itself
}
