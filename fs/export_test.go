package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// ReleaseRemoved closes the parts that are no longer in the store.
func (m *Mount) ReleaseRemoved() { m.parts.ReleaseRemoved() }

// LimitPaths bounds the paths below ".versions" that are remembered.
func (m *Mount) LimitPaths(n int) {
	m.paths.mu.Lock()
	defer m.paths.mu.Unlock()
	m.paths.limit = n
}

// CanReconnect reports whether a connection can be replaced.
func CanReconnect() bool { return canReconnect() }

// Read answers a READ request.
func (m *Mount) Read(in *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	return m.server.Load().Read(nil, in, b)
}
