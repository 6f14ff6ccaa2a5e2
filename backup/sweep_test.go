package backup

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
)

// wrongRemoval makes a repository of one generation, and a record that removes the part
// that the generation needs. It returns the source and the part.
func wrongRemoval(t *testing.T) (r *archive.Repository, source string, part archive.Digest) {
	t.Helper()
	r, source = spoiled(t)
	write(t, filepath.Join(source, "file"), []byte("needed"))
	create(t, r, optionsFor(source))
	part = usedParts(t, r)[0]
	commitLines(t, r, archive.KindCompaction, archive.Line{Removed: &part})
	return r, source, part
}

// usedParts returns the parts of a repository.
func usedParts(t *testing.T, r *archive.Repository) (parts []archive.Digest) {
	t.Helper()
	db := openIndex(t, r)
	defer db.Close()
	if err := db.Parts(func(p archive.Part) bool {
		parts = append(parts, p.Name)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return parts
}

// TestNeededPartStays: the file of a removed part that a generation needs is not deleted.
func TestNeededPartStays(t *testing.T) {
	r, source, part := wrongRemoval(t)
	o, notes := optionsFor(source), []string(nil)
	o.Events.Note = func(text string) { notes = append(notes, text) }
	create(t, r, o)
	if _, err := os.Stat(filepath.Join(r.Dir(), archive.PartStoreName(part))); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(notes, func(text string) bool { return strings.HasPrefix(text, "no removed part was deleted: ") }) {
		t.Errorf("notes: %q", notes)
	}
}

// TestWrongCheckpoint: a checkpoint from which no index can be derived that says the same
// is not committed.
func TestWrongCheckpoint(t *testing.T) {
	r, _, _ := wrongRemoval(t)
	db := openIndex(t, r)
	defer db.Close()
	number, _, err := commitCheckpoint(context.Background(), r, db, checkpointOptions{limit: math.MaxInt64, program: "test"})
	if err == nil || !strings.HasPrefix(err.Error(), "make a checkpoint: nothing was changed: ") {
		t.Errorf("%d, %v", number, err)
	}
	if records, err := r.Records(); err != nil || len(records) != 2 {
		t.Errorf("records %v, %v", records, err)
	}
}

// TestDamagedCheckpoint: the records before a checkpoint stay if it has rotted since it was
// made, whether it is the last record or not.
func TestDamagedCheckpoint(t *testing.T) {
	for name, behind := range map[string]bool{"last": false, "one behind it": true} {
		t.Run(name, func(t *testing.T) {
			s := past(t)
			r, err := archive.Open(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var before []uint64
			h := hooks{at: func(point string) {
				if point != "before log sweep" {
					return
				}
				if before, err = r.Records(); err != nil {
					t.Fatal(err)
				}
				if behind {
					create(t, r, optionsFor(s.source))
				}
				damage(t, filepath.Join(s.dir, archive.RecordStoreName(before[len(before)-1])))
			}}
			_, err = Compact(context.Background(), r, CompactOptions{Program: "test", hooks: h})
			after, listErr := r.Records()
			if err == nil || listErr != nil || len(before) < 2 || len(after) < len(before) || !slices.Equal(after[:len(before)], before) {
				t.Errorf("records %v, before %v: %v, %v", after, before, err, listErr)
			}
			t.Log(err)
		})
	}
}

// damage flips a bit in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := errors.Join(os.Remove(path), os.WriteFile(path, data, 0o400)); err != nil {
		t.Fatal(err)
	}
}
