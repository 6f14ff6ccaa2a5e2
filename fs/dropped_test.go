package fs_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/fs"
	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// compact stores contents anew and removes a part.
func (r *repo) compact(part archive.Digest, contents ...string) {
	r.t.Helper()
	record, err := r.NewRecord()
	if err != nil {
		r.t.Fatal(err)
	}
	packer := archive.NewPacker(r.Store(), archive.PackerOptions{FrameRaw: 8 << 10}, record.AddPart)
	for _, data := range contents {
		if err := packer.Add(archive.Member{Name: "f"}, archive.HashOf([]byte(data)), []byte(data)); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := packer.Close(); err != nil {
		r.t.Fatal(err)
	}
	if err := record.Add(archive.Line{Removed: &part}); err != nil {
		r.t.Fatal(err)
	}
	r.append(record, archive.Header{Kind: archive.KindCompaction, Time: time.Now()})
	if err := r.Store().Remove(archive.PartStoreName(part)); err != nil {
		r.t.Fatal(err)
	}
}

// readNode asks a mount for the start of a file.
func readNode(m *fs.Mount, node uint64, length int) (string, fuse.Status) {
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: node}, Size: uint32(length)}
	result, status := m.Read(in, make([]byte, length))
	if !status.Ok() {
		return "", status
	}
	defer result.Done()
	data, status := result.Bytes(nil)
	return string(data), status
}

// A file of a dropped generation is read from where a compaction has moved its content,
// also once only an old index knows the file. What was reclaimed is no damage.
func TestCompactionBehindADroppedGeneration(t *testing.T) {
	r := newRepo(t)
	moved, reclaimed := strings.Repeat("moved", 10_000), strings.Repeat("reclaimed", 10_000)
	d := r.begin("")
	d.file("f", moved)
	d.file("only", reclaimed)
	first := d.commit("2026-11-21T03:00:00Z")
	d = r.begin("")
	d.gone("f")
	d.gone("only")
	d.file("g", moved)
	d.commit("2026-11-21T04:00:00Z")
	mnt, log, m := mounted(t, r, fs.Options{})
	f, only := stat(t, mnt+"/"+first+"/f").Ino, stat(t, mnt+"/"+first+"/only").Ino

	check := func(when string) {
		t.Helper()
		m.Refresh()
		if got, status := readNode(m, f, len(moved)); got != moved || !status.Ok() {
			t.Errorf("%s: what was moved: %d bytes, %v", when, len(got), status)
		}
		if _, status := readNode(m, only, len(reclaimed)); status != fuse.Status(unix.ESTALE) {
			t.Errorf("%s: what was reclaimed: %v", when, status)
		}
	}
	r.forgetAt(time.Now().AddDate(0, 0, -1), 1)
	m.Refresh()
	r.compact(partName(t, r), moved)
	check("after the compaction")

	db, err := index.Shrink(r.Repository, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Inode(index.Ino(f)); !errors.Is(err, index.ErrNotFound) {
		t.Fatalf("the inode in the newest index: %v", err)
	}
	r.begin("").commit("2026-11-21T05:00:00Z")
	check("after the index was shrunk")
	if n := m.Metrics().Failures; n != 0 {
		t.Errorf("%d failures", n)
	}
	log.wantNone(t)
}

// A READ that finds its part gone does not wait for a failure long ago, nor for one of
// this moment if there is an index since.
func TestReadPressesAfterAFailure(t *testing.T) {
	for name, meanwhile := range map[string]func(r *repo){
		"a second later": func(*repo) { time.Sleep(1100 * time.Millisecond) },
		"with an index":  func(r *repo) { openIndex(t, r) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			data := strings.Repeat("data", 10_000)
			d := r.begin("")
			d.file("f", data)
			d.commit("2026-11-21T03:00:00Z")
			mnt, _, m := mounted(t, r, fs.Options{})
			f := stat(t, mnt+"/latest/f").Ino
			m.FailRefresh()
			r.compact(partName(t, r), data)
			meanwhile(r)
			if got, status := readNode(m, f, len(data)); got != data || !status.Ok() {
				t.Errorf("%d bytes, %v", len(got), status)
			}
		})
	}
}

// openIndex publishes the index of the whole log.
func openIndex(t *testing.T, r *repo) {
	t.Helper()
	db, err := index.Open(r.Repository, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// partName returns the name of the only part.
func partName(t *testing.T, r *repo) archive.Digest {
	t.Helper()
	part := onlyPart(t, r)
	name, ok := archive.ParsePartStoreName(strings.TrimPrefix(part, r.Dir()+"/"))
	if !ok {
		t.Fatal(part)
	}
	return name
}
