package backup

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// BenchmarkCheckStructure checks a log of a million files, as CLI.md wants it in
// at most 2 s. The contents all lie in one place, which only --read-data sees.
func BenchmarkCheckStructure(b *testing.B) {
	const files = 1_000_000
	r, err := archive.Init(b.TempDir()+"/repo", archive.InitOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	draft, err := r.NewRecord()
	if err != nil {
		b.Fatal(err)
	}
	defer draft.Discard()
	hash := func(i int) (h archive.Hash) { binary.BigEndian.PutUint64(h[:], uint64(i)*0x9e3779b97f4a7c15); return h }
	packer := archive.NewPacker(r.Store(), archive.PackerOptions{}, func(p archive.PublishedPart) error {
		one := p.Contents[0]
		p.Contents = nil
		for i := range files {
			p.Contents = append(p.Contents, archive.Content{Hash: hash(i), RawOffset: one.RawOffset, RawLen: one.RawLen})
		}
		return draft.AddPart(p)
	})
	if err := packer.Add(archive.Member{Name: "x"}, archive.HashOf([]byte("x")), []byte("x")); err != nil {
		b.Fatal(err)
	}
	if err := packer.Close(); err != nil {
		b.Fatal(err)
	}
	add := func(e archive.Entry) {
		if err := draft.Add(archive.Line{Entry: &e}); err != nil {
			b.Fatal(err)
		}
	}
	dir := archive.Attr{Type: archive.TypeDir, Mode: 0o755, Nlink: 2}
	add(archive.Entry{Path: ".", Attr: dir})
	for i := range files {
		d := fmt.Sprintf("directory-%05d", i/20)
		if i%20 == 0 {
			add(archive.Entry{Path: d, Attr: dir})
		}
		add(archive.Entry{Path: fmt.Sprintf("%s/file-%02d", d, i%20), Attr: archive.Attr{Type: archive.TypeFile, Mode: 0o644, Size: 1, Nlink: 1,
			Mtime: archive.Timespec{Sec: 1_700_000_000 + int64(i)}, Ctime: archive.Timespec{Sec: 1_700_000_000, Nsec: uint32(i)}, Inode: uint64(i)},
			Data: []archive.Extent{{Len: 1, Hash: hash(i)}}})
	}
	now := time.Now().UTC()
	if _, _, err := draft.Commit(archive.Header{Kind: archive.KindGeneration, Number: 1, Time: now, Name: now.Format(archive.GenerationTimeFormat)}); err != nil {
		b.Fatal(err)
	}
	db, err := index.Open(r, index.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		result, err := Check(context.Background(), r, CheckOptions{})
		if err != nil || result.Damages > 0 {
			b.Fatalf("%+v, %v", result, err)
		}
	}
}
