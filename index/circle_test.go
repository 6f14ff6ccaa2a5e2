package index

import (
	"errors"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
)

// TestCircles reads an index, as somebody may have made it, in which a directory lies in
// itself: every walk ends, and says that the index is damaged.
func TestCircles(t *testing.T) {
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0, entryLine(".", dirAttr()), entryLine("a", dirAttr()), entryLine("a/b", dirAttr()), entryLine("a/f", fileAttr(0))); err != nil {
		t.Fatal(err)
	}
	b.number++                               // what is written next is part of no record
	for _, above := range []DirID{1, 2, 3} { // b, which is directory 3, has all of these in it
		if err := b.put(appendDirentKey(nil, 3, string(rune('x'+above))), appendDirent(nil, dirent{kind: kindDir, dir: above})); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.put(appendID(nil, spaceGeneration, 2), appendGeneration(nil, Generation{Name: "2026-11-22T04-00-00Z", Time: time.Unix(0, 0).UTC(), Root: 1})); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	walk := func() error {
		view := db.At(2)
		dirs := []DirID{1}
		for n := 0; len(dirs) > 0; n++ {
			if n > 100 {
				t.Fatal("a walk does not end")
			}
			err := view.List(dirs[0], "", func(e Dirent) bool {
				if e.Dir != 0 {
					dirs = append(dirs, e.Dir)
				}
				return true
			})
			if err != nil {
				return err
			}
			dirs = dirs[1:]
		}
		return nil
	}
	for what, read := range map[string]func() error{
		"walk":   walk,
		"Lookup": func() error { _, err := db.At(2).Lookup(3, "z"); return err },
		"Live": func() error {
			_, err := db.Live(func(archive.Placement, Need, bool) error { return nil })
			return err
		},
		"Holders": func() error { _, err := db.Holders(func(archive.Hash) bool { return true }); return err },
		"bury": func() error {
			next, err := newBuilder(disk.OS{}, b.dir, b.tables, b.number)
			if err != nil {
				return err
			}
			defer next.close()
			return (&applier{b: next}).bury(1)
		},
	} {
		done := make(chan error, 1)
		go func() { done <- read() }()
		select {
		case err := <-done:
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v, want an error that says that the index is damaged", what, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s does not end", what)
		}
	}
}
