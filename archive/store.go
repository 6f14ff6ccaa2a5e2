package archive

import (
	"errors"
	"io"
	"io/fs"
	"iter"

	"golang.org/x/sys/unix"
)

// Store holds named, immutable objects: parts and log records. Names are
// relative paths of plain ASCII, "/" between components. A Store is safe for
// concurrent use by many goroutines and many processes.
type Store interface {
	// Create starts an object that nobody sees until it is published.
	Create() (Draft, error)
	// Open opens a published object; the error wraps fs.ErrNotExist where there is none.
	Open(name string) (Object, error)
	// List yields the published objects whose names begin with prefix, which
	// is "" or ends with "/", in the order of their names. An object published
	// or removed meanwhile may be missed or seen. After an error it ends: a
	// listing that could not be read is never taken for an empty one.
	List(prefix string) iter.Seq2[ObjectInfo, error]
	// Names yields the names that List yields, without looking at each object.
	Names(prefix string) iter.Seq2[string, error]
	// Settle returns once it is on stable storage that an object is there, or was
	// removed. Who published or removed it may have died before it was.
	Settle(name string) error
	// Remove removes a published object. Whoever has it open goes on reading.
	Remove(name string) error
}

// IsInconclusive reports whether an error says nothing about what is stored: it may not
// be read by this user, there are too many open files or too little memory, or a server
// does not answer.
func IsInconclusive(err error) bool {
	for _, e := range [...]error{fs.ErrPermission, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ETIMEDOUT, unix.ENOTCONN, unix.EHOSTDOWN, unix.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ObjectInfo describes a published object.
type ObjectInfo struct {
	Name   string
	Stored int64 // bytes
}

// Draft is an object being written. It is used by one goroutine. After the
// first error of Write every later call fails too.
type Draft interface {
	io.Writer
	// Publish makes the object visible under name, whole, and returns once it
	// is on stable storage. The error wraps fs.ErrExist where the name is
	// taken: of two writers of one name exactly one succeeds. After another
	// error the object may be visible, whole, but may be gone after a crash.
	Publish(name string) error
	// Replace is Publish in the place of a published object that is damaged. It may
	// follow a Publish whose error wraps fs.ErrExist. Whoever has the other object
	// open goes on reading that one.
	Replace(name string) error
	// Discard drops what was written. It does nothing after Publish or Replace.
	Discard() error
}

// Object is a published object. It is safe for concurrent use until closed.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64 // stored bytes
}
