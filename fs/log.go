package fs

import (
	"bytes"
	"fmt"
	"log"
	"sync"
)

// maxRemembered bounds the messages that a logger remembers.
const maxRemembered = 1000

// logger writes messages, and those that would repeat with every access only
// once. It is safe for concurrent use.
type logger struct {
	print func(format string, a ...any)

	mu   sync.Mutex
	said map[string]struct{}
}

func newLogger(print func(format string, a ...any)) *logger {
	if print == nil {
		print = func(string, ...any) {}
	}
	return &logger{print: print, said: make(map[string]struct{})}
}

// once writes a message unless it was written before. It may be repeated after
// many others.
func (l *logger) once(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	if l.first(text) {
		l.print("%s", text)
	}
}

func (l *logger) first(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.said[text]; ok {
		return false
	}
	if len(l.said) >= maxRemembered {
		clear(l.said)
	}
	l.said[text] = struct{}{}
	return true
}

// forGoFuse returns a logger for go-fuse, without its complaint about answers
// that nobody waits for any more: a program that is killed while it reads is
// nothing to report.
func (l *logger) forGoFuse() *log.Logger { return log.New(fuseLog{l}, "", 0) }

type fuseLog struct{ *logger }

// Write implements io.Writer: p is one message.
func (l fuseLog) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(p, []byte("writer: Write/Writev failed, err: 2=")) {
		l.print("%s", bytes.TrimRight(p, "\n"))
	}
	return len(p), nil
}
