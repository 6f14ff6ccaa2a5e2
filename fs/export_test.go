package fs

// ReleaseRemoved closes the parts that are no longer in the store.
func (m *Mount) ReleaseRemoved() { m.parts.releaseRemoved() }
