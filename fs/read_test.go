package fs_test

import (
	"strings"
	"testing"

	"github.com/backupfs/backupfs/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// reader returns a function that answers READ requests of 16 KiB for a file
// whose frame is decoded, as go-fuse has them answered.
func reader(t testing.TB) (read func()) {
	t.Helper()
	r := newRepo(t)
	d := r.begin("")
	content := strings.Repeat("0123456789abcdef", 1024)
	d.file("f", content)
	d.commit("2026-11-21T03:00:00Z")
	mnt, _, m := mounted(t, r, fs.Options{})
	in := fuse.ReadIn{InHeader: fuse.InHeader{NodeId: stat(t, mnt+"/latest/f").Ino}, Size: 16 << 10}
	b := make([]byte, 16<<10)
	return func() {
		result, status := m.Read(&in, b)
		if !status.Ok() || result.Size() != 16<<10 {
			t.Fatalf("%v, %d bytes", status, result.Size())
		}
		result.Done()
	}
}

// A READ of what is decoded allocates nothing here. The index does so twice: for
// what it knows of the inode, and for the places of its contents.
func TestReadAllocates(t *testing.T) {
	read := reader(t)
	read()
	if n := testing.AllocsPerRun(1000, read); n > 2 {
		t.Errorf("%.1f allocations per READ", n)
	}
}

func BenchmarkRead(b *testing.B) {
	read := reader(b)
	b.SetBytes(16 << 10)
	b.ReportAllocs()
	for b.Loop() {
		read()
	}
}
