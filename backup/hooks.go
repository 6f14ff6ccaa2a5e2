package backup

// hooks are where tests step in. The zero value does nothing.
type hooks struct {
	at       func(point string) // called at places where another process may come between
	blind    bool               // a commit that was overtaken is not validated again
	unlocked bool               // files are deleted without the lock
	whole    bool               // no checkpoint is made
}

func (h hooks) reach(point string) {
	if h.at != nil {
		h.at(point)
	}
}
