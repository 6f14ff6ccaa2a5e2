package fs_test

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/backupfs/backupfs/fs"
	nodefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stuckFile is a file whose bytes do not come before it is released.
type stuckFile struct {
	nodefs.Inode
	asked    chan struct{} // closed by the first who reads
	once     sync.Once
	released chan struct{}
}

func (f *stuckFile) Open(context.Context, uint32) (nodefs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *stuckFile) Getattr(_ context.Context, _ nodefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, 4096
	return 0
}

func (f *stuckFile) Read(_ context.Context, _ nodefs.FileHandle, b []byte, _ int64) (fuse.ReadResult, syscall.Errno) {
	f.once.Do(func() { close(f.asked) })
	<-f.released
	return fuse.ReadResultData(make([]byte, len(b))), 0
}

// stuckMemory returns a page of memory that does not come before the file is released.
func stuckMemory(t *testing.T) (page []byte, f *stuckFile) {
	t.Helper()
	f = &stuckFile{asked: make(chan struct{}), released: make(chan struct{})}
	root := &nodefs.Inode{}
	dir := mountpoint(t)
	server, err := nodefs.Mount(dir, root, &nodefs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("f", root.NewPersistentInode(ctx, f, nodefs.StableAttr{Mode: unix.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	fd, err := unix.Open(dir+"/f", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	page, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(page); err != nil {
			t.Error(err)
		}
	})
	return page, f
}

// A program that reads a listing into memory that never comes holds a lock of the kernel
// that it takes to hear of changes. The mount goes on all the same.
func TestStuckReaderOfAListing(t *testing.T) {
	r := newRepo(t)
	r.begin("").commit("2026-11-21T03:00:00Z")
	mnt, _, m := mounted(t, r, fs.Options{})
	if len(names(t, mnt)) != 2 { // the kernel knows "latest"
		t.Error("not one generation and latest")
	}
	page, f := stuckMemory(t)
	dir := openRaw(t, mnt)
	defer unix.Close(dir)
	var reader sync.WaitGroup
	reader.Go(func() {
		_, _, _ = unix.Syscall(unix.SYS_GETDENTS64, uintptr(dir), uintptr(unsafe.Pointer(&page[0])), uintptr(len(page)))
	})
	defer reader.Wait()
	defer close(f.released)
	<-f.asked
	for n, at := range []string{"2026-11-21T04:00:00Z", "2026-11-21T05:00:00Z", "2026-11-21T06:00:00Z"} {
		r.begin("").commit(at)
		eventually(t, "a generation is not shown", func() bool { return m.Metrics().Sources[0].Generations == n+2 })
	}
}
