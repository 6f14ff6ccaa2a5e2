package backup

import "time"

// hooks are where tests step in. The zero value does nothing.
type hooks struct {
	at       func(point string) // called at places where another process may come between
	blind    bool               // a commit that was overtaken is not validated again
	unlocked bool               // files are deleted without the lock
	whole    bool               // no checkpoint is made
	clock    func() time.Time   // nil means that of the machine
}

// now returns the time of what is made, for records and rules. How long something takes
// does not depend on it.
func (h hooks) now() time.Time {
	if h.clock != nil {
		return h.clock()
	}
	return time.Now()
}

func (h hooks) reach(point string) {
	if h.at != nil {
		h.at(point)
	}
}
