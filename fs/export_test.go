package fs

// ReleaseRemoved closes the parts that are no longer in the store.
func (m *Mount) ReleaseRemoved() { m.parts.releaseRemoved() }

// CanReconnect reports whether a connection can be replaced.
func CanReconnect() bool { return canReconnect() }
