package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/backupfs/backupfs/internal/disk"
)

// spoiled is a repository that a test damages, so nothing checks it at the end.
func spoiled(t *testing.T) (*archive.Repository, string) {
	t.Helper()
	r, err := archive.Init(filepath.Join(t.TempDir(), "repo"), archive.InitOptions{PartSize: archive.MinPartSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, t.TempDir()
}

// checked is the outcome of a check.
type checked struct {
	CheckResult
	damages, notes []string
	differences    []string
}

func check(t *testing.T, r *archive.Repository, o CheckOptions) checked {
	t.Helper()
	var c checked
	var err error
	o.Damage = func(text string) { c.damages = append(c.damages, text) }
	o.Note = func(text string) { c.notes = append(c.notes, text) }
	o.Difference = func(d Difference) {
		c.differences = append(c.differences, fmt.Sprintf("%d %s: %s", d.Kind, d.Path, d.What))
	}
	if c.CheckResult, err = Check(context.Background(), r, o); err != nil {
		t.Fatalf("%v, damages %q", err, c.damages)
	}
	return c
}

// digests returns the SHA-256 of every file of a repository.
func digests(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	sums := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		sums[path] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

func wantSameFiles(t *testing.T, before, after map[string][32]byte) {
	t.Helper()
	for path, sum := range before {
		if after[path] != sum {
			t.Errorf("%s was changed or removed", path)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s was made", path)
		}
	}
}

// TestCheckWhole: all kinds of checks find nothing wrong with a sound repository,
// and change no byte of it, --repair included.
func TestCheckWhole(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	write(t, source+"/a/small", []byte("one"))
	write(t, source+"/large", randomBytes(1, 3<<20))
	create(t, r, optionsFor(source))
	write(t, source+"/a/small", []byte("two"))
	create(t, r, optionsFor(source))
	before := digests(t, r.Dir())
	for _, o := range []CheckOptions{{}, {ReadData: true}, {Repair: true}, {ReadData: true, Repair: true, Against: source}} {
		c := check(t, r, o)
		if c.Damaged() || c.Generations != 2 || c.Records != 2 || c.Parts < 3 || c.Repaired {
			t.Errorf("%+v: %+v", o, c)
		}
		if read := c.ReadParts == c.Parts && c.ReadBytes == c.StoredBytes; read != o.ReadData {
			t.Errorf("%+v: read %d parts of %d, %d bytes of %d", o, c.ReadParts, c.Parts, c.ReadBytes, c.StoredBytes)
		}
		wantSameFiles(t, before, digests(t, r.Dir()))
	}
}

// TestWrongPlaces: a record that says of two contents that each is where the
// other one is. Every digest of every frame is right; the contents are not.
func TestWrongPlaces(t *testing.T) {
	r, _ := spoiled(t)
	contents := []string{"first", "other", "third"}
	forge(t, r, contents, contents, func(c []archive.Content) { c[0].Hash, c[1].Hash = c[1].Hash, c[0].Hash })
	if c := check(t, r, CheckOptions{}); c.Damaged() {
		t.Errorf("structure: %q", c.damages)
	}
	c := check(t, r, CheckOptions{ReadData: true})
	if len(c.DamagedParts) != 1 || c.DamagedParts[0].Contents != 2 || c.DamagedFiles != 2 || c.HitGenerations != 1 {
		t.Fatalf("%+v, %q", c.CheckResult, c.damages)
	}
	if f := c.DamagedParts[0].Files; f[0].Path != "first" || f[1].Path != "other" {
		t.Errorf("%+v", f)
	}
	text, err := json.Marshal(c.DamagedParts[0])
	want := `"damages":[{"stored_offset":0,"problem":"its contents are not those that the log says"}],"damaged_contents":2,"contents_elsewhere":0,` +
		`"files":[{"path":"first","generations":["2026-11-22T03-00-00Z"]},{"path":"other","generations":["2026-11-22T03-00-00Z"]}]}`
	if err != nil || !strings.HasSuffix(string(text), want) {
		t.Errorf("%s, %v", text, err)
	}
}

// TestSaidAgain: what a later record says of a content counts, also where an earlier one
// was right. No program writes such a record.
func TestSaidAgain(t *testing.T) {
	content := func(p archive.Part, text string, rawOffset, rawLen int64) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: p.Name, Content: archive.Content{Hash: archive.HashOf([]byte(text)), RawOffset: rawOffset, RawLen: rawLen}}}
	}
	other := archive.Part{Name: archive.Digest{9}, Stored: 1000, Raw: 4096, TailStored: 129}
	for name, c := range map[string]struct {
		say  func(t *testing.T, r *archive.Repository, p archive.Part)
		data bool // only reading tells
		hit  []string
	}{
		"shorter": {func(t *testing.T, r *archive.Repository, p archive.Part) {
			commitLines(t, r, archive.KindCompaction, content(p, "other", 1536, 4))
		}, true, []string{"other"}},
		"longer": {func(t *testing.T, r *archive.Repository, p archive.Part) {
			commitLines(t, r, archive.KindCompaction, content(p, "other", 1536, 6))
		}, true, []string{"other"}},
		"in a part that is gone": {func(t *testing.T, r *archive.Repository, p archive.Part) {
			commitLines(t, r, archive.KindCompaction, archive.Line{Part: &other}, content(other, "other", 512, 5))
			commitLines(t, r, archive.KindCompaction, archive.Line{Removed: &other.Name})
		}, false, []string{"other"}},
		"where others are": {func(t *testing.T, r *archive.Repository, p archive.Part) {
			commitLines(t, r, archive.KindCompaction, content(p, "first", 1536, 5), content(p, "other", 512, 5)) // each where the other one is
		}, true, []string{"first", "other"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := spoiled(t)
			contents := []string{"first", "other", "third"}
			forge(t, r, contents, contents, func([]archive.Content) {})
			db := openIndex(t, r)
			var p archive.Part
			if err := db.Parts(func(only archive.Part) bool { p = only; return true }); err != nil {
				t.Fatal(err)
			}
			db.Close()
			c.say(t, r, p)
			for _, rebuild := range []bool{false, true} {
				if rebuild {
					db, err := index.Rebuild(r, index.Options{})
					if err != nil {
						t.Fatal(err)
					}
					db.Close()
				}
				for _, o := range []CheckOptions{{}, {ReadData: true}} {
					got := check(t, r, o)
					if c.data && !o.ReadData {
						if got.Damaged() {
							t.Errorf("%q", got.damages)
						}
						continue
					}
					if len(got.DamagedParts) != 1 || got.DamagedFiles != len(c.hit) {
						t.Fatalf("rebuilt %t, %+v: %+v, %q", rebuild, o, got.CheckResult, got.damages)
					}
					damaged := got.DamagedParts[0]
					var hit []string
					for _, f := range damaged.Files {
						hit = append(hit, f.Path)
					}
					if !got.Damaged() || !slices.Equal(hit, c.hit) || damaged.Elsewhere != 0 || damaged.Contents != len(c.hit) || got.DamagedIndexes != 0 {
						t.Errorf("rebuilt %t, %+v: %+v, %+v, %q", rebuild, o, got.CheckResult, damaged, got.damages)
					}
				}
			}
		})
	}
}

// TestStoredWithItsLength: a content that the log gives another length is stored again: a
// record that relies on it would be refused.
func TestStoredWithItsLength(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	write(t, source+"/file", []byte("other"))
	create(t, r, optionsFor(source))
	db := openIndex(t, r)
	hash := archive.HashOf([]byte("other"))
	place, err := db.Content(hash)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	commitLines(t, r, archive.KindCompaction, archive.Line{Content: &archive.Placement{Part: place.Part.Name, Content: archive.Content{Hash: hash, RawOffset: place.RawOffset, RawLen: 4}}})
	write(t, source+"/same", []byte("other"))
	create(t, r, optionsFor(source))
	wantContents(t, r, 1, map[string]string{"file": "other"})
	wantContents(t, r, 3, map[string]string{"file": "other", "same": "other"})
}

// forge commits a generation, and the part that it needs. Of what lies in that the record says
// what change makes of the truth. A file is called as its content, 5 bytes; files are sorted.
func forge(t *testing.T, r *archive.Repository, contents, files []string, change func([]archive.Content)) {
	t.Helper()
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	packer := archive.NewPacker(r.Store(), archive.PackerOptions{}, func(p archive.PublishedPart) error {
		change(p.Contents)
		return draft.AddPart(p)
	})
	for _, c := range contents {
		if err := packer.Add(archive.Member{Name: c}, archive.HashOf([]byte(c)), []byte(c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	entries := []archive.Entry{{Path: ".", Attr: archive.Attr{Type: archive.TypeDir, Nlink: 1}}}
	for _, f := range files {
		entries = append(entries, archive.Entry{Path: f, Attr: archive.Attr{Type: archive.TypeFile, Size: 5, Nlink: 1},
			Data: []archive.Extent{{Len: 5, Hash: archive.HashOf([]byte(f))}}})
	}
	for i := range entries {
		if err := draft.Add(archive.Line{Entry: &entries[i]}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := draft.Commit(archive.Header{Kind: archive.KindGeneration, Number: 1, Name: "2026-11-22T03-00-00Z"}); err != nil {
		t.Fatal(err)
	}
}

// TestSubsets: subsets of any percentage that follow one another cover every
// part, as soon as they have 100% together, and those that divide 100 none twice.
func TestSubsets(t *testing.T) {
	var parts []archive.Digest
	for i := range 10_000 {
		parts = append(parts, sha256.Sum256(fmt.Append(nil, i)))
	}
	for text, checks := range map[string]int{"5%": 20, "7%": 15, "33%": 4, "2.5%": 40, "100%": 1, "99.9%": 2, "0.1%": 1000} {
		length, err := ParsePercentage(text)
		if err != nil {
			t.Fatal(err)
		}
		for name, first := range map[string]Subset{"remembered": {Start: 12345, Length: length}, "by date": OnDay(20_000, length)} {
			times := map[archive.Digest]int{}
			s := first
			for day := range checks {
				if name == "by date" {
					s = OnDay(20_000+uint64(day), length)
				}
				for _, p := range parts {
					if s.has(p) {
						times[p]++
					}
				}
				s = s.Next()
			}
			most := 2
			if text == "5%" || text == "2.5%" || text == "100%" || text == "0.1%" {
				most = 1
			}
			for _, p := range parts {
				if n := times[p]; n < 1 || n > most {
					t.Fatalf("%s, %s: a part was read %d times in %d checks, want 1 to %d", text, name, n, checks, most)
				}
			}
		}
	}
	for _, text := range []string{"", "5", "0%", "-1%", "101%", "NaN%", "%", "five%"} {
		if length, err := ParsePercentage(text); err == nil {
			t.Errorf("%q is taken for %d", text, length)
		}
	}
}

// TestCheckSubset reads subsets of a repository until all is read.
func TestCheckSubset(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	for i := range 150 {
		write(t, fmt.Sprintf("%s/%03d", source, i), randomBytes(uint64(i), 70<<10))
	}
	create(t, r, optionsFor(source))
	length, err := ParsePercentage("15%")
	if err != nil {
		t.Fatal(err)
	}
	s, read := Subset{Length: length}, 0
	for range 6 { // 90%
		c := check(t, r, CheckOptions{ReadData: true, Subset: s})
		if c.Damaged() || c.ReadParts == c.Parts {
			t.Errorf("%+v", c)
		}
		read += c.ReadParts
		s = s.Next()
	}
	s.Length = -s.Start // what is left
	if c := check(t, r, CheckOptions{ReadData: true, Subset: s}); read+c.ReadParts != c.Parts || c.Parts < 8 {
		t.Errorf("%d and %d of %d parts were read", read, c.ReadParts, c.Parts)
	}
}

// TestDamagedLog says which generations are lost, and that others are not.
func TestDamagedLog(t *testing.T) {
	r, source := spoiled(t)
	o := optionsFor(source)
	for day := range 5 {
		o.Time = time.Date(2026, 11, 1+day, 3, 0, 0, 0, time.UTC)
		write(t, source+"/file", []byte(fmt.Sprint(day)))
		create(t, r, o)
	}
	forget(t, r, 4)
	part := partsOf(t, r, 3, "file")[0]
	record := filepath.Join(r.Dir(), "log", "000000000003.jsonl.zst")
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	c := check(t, r, CheckOptions{})
	if c.DamagedRecords != 1 || c.Lost != 0 || c.Generations != 4 || c.Repaired || !slices.Equal(c.damages, []string{"log record 3 is missing"}) {
		t.Errorf("with an index: %+v, %q", c.CheckResult, c.damages)
	}
	// A part that only the missing record names, and the index.
	stored, aside := filepath.Join(r.Dir(), archive.PartStoreName(part)), filepath.Join(t.TempDir(), "part")
	if err := os.Rename(stored, aside); err != nil {
		t.Fatal(err)
	}
	if c := check(t, r, CheckOptions{}); len(c.DamagedParts) != 1 || c.DamagedParts[0].Part != part || c.DamagedFiles != 1 {
		t.Errorf("without a part: %+v, %q", c.CheckResult, c.damages)
	}
	if err := os.Rename(aside, stored); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.IndexDir()); err != nil {
		t.Fatal(err)
	}
	c = check(t, r, CheckOptions{ReadData: true})
	if c.DamagedRecords != 1 || c.Lost != 1 || c.Generations != 2 || len(c.damages) != 2 {
		t.Errorf("without: %+v, %q", c.CheckResult, c.damages)
	}
	if want := "lost are the generations 2026-11-05T03-00-00Z (record 5): "; len(c.damages) == 2 && !strings.HasPrefix(c.damages[1], want) {
		t.Errorf("%q, want %q…", c.damages[1], want)
	}
	if c.ReadParts != c.Parts || c.Parts != 4 {
		t.Errorf("read %d of %d parts", c.ReadParts, c.Parts)
	}
}

// TestLogRepaired: an index that has all that a damaged log said is written to it again,
// and nothing is lost with the index then. A backup says that a record is missing.
func TestLogRepaired(t *testing.T) {
	for name, spoil := range map[string]func(record string) error{
		"missing": os.Remove,
		"damaged": func(record string) error { return os.Truncate(record, 50) },
	} {
		t.Run(name, func(t *testing.T) {
			r, source := newRepository(t), t.TempDir()
			for i := range 4 {
				write(t, source+"/file", []byte(fmt.Sprint(i)))
				create(t, r, optionsFor(source))
			}
			want := map[uint64]string{2: "1", 3: "2", 4: "3", 6: "3"}
			forget(t, r, 1)
			if err := spoil(filepath.Join(r.Dir(), archive.RecordStoreName(3))); err != nil {
				t.Fatal(err)
			}
			var damages []string
			o := optionsFor(source)
			o.Events.Damage = func(text string) { damages = append(damages, text) }
			s := create(t, r, o)
			if missing := name == "missing"; (s.LostRecords == 1) != missing || (len(damages) == 1) != missing || missing && !strings.HasPrefix(damages[0], "log record 3 is missing: ") {
				t.Errorf("a backup: %+v, %q", s, damages)
			}
			if c := check(t, r, CheckOptions{Repair: true}); c.DamagedRecords == 0 || c.Generations != 4 || !c.Repaired || c.Damaged() {
				t.Errorf("repair: %+v, %q", c.CheckResult, c.damages)
			}
			if err := os.RemoveAll(r.IndexDir()); err != nil {
				t.Fatal(err)
			}
			for number, content := range want {
				if got := contentsOf(t, r, number)["file"]; got != content {
					t.Errorf("generation %d holds %q, want %q", number, got, content)
				}
			}
			if c := check(t, r, CheckOptions{ReadData: true}); c.Damaged() || c.Generations != 4 {
				t.Errorf("afterwards: %+v, %q", c.CheckResult, c.damages)
			}
			if s := create(t, r, optionsFor(source)); s.LostRecords != 0 {
				t.Errorf("the next backup: %+v", s)
			}
		})
	}
}

// TestStrayRecords: an empty file by the name of a record that is far off is a gap in the log,
// and one by a number that no record has is none. A check of either comes to its end.
func TestStrayRecords(t *testing.T) {
	for number, want := range map[uint64]int{math.MaxInt64: math.MaxInt64 - 1, math.MaxUint64: 0} {
		r, source := spoiled(t)
		create(t, r, optionsFor(source))
		write(t, filepath.Join(r.Dir(), archive.RecordStoreName(number)), nil)
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		result, err := Check(ctx, r, CheckOptions{})
		if err != nil || result.DamagedRecords != want || result.Generations != 1 {
			t.Errorf("record %d: %+v, %v", number, result, err)
		}
	}
}

// TestRepeatedGenerations: a hostile checkpoint that states a generation again and again,
// which takes hardly a byte, is refused at the second time.
func TestRepeatedGenerations(t *testing.T) {
	r, source := spoiled(t)
	create(t, r, optionsFor(source))
	line := archive.Line{Generation: &archive.Header{Kind: archive.KindGeneration, Number: 1, Name: "2026-11-22T03-00-00Z", Time: time.Now().UTC()}}
	commitLines(t, r, archive.KindCheckpoint, slices.Repeat([]archive.Line{line}, 1000)...)
	c := &checking{ctx: context.Background(), repo: r}
	if f := c.readRecord(2); f.err == nil || !strings.Contains(f.err.Error(), "it states generation 1 behind generation 1") || len(f.stated) != 1 {
		t.Errorf("%d generations, %v", len(f.stated), f.err)
	}
}

// TestCheckpointWhileLogIsListed: the log began with a checkpoint when it was listed, and
// another one was made since.
func TestCheckpointWhileLogIsListed(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	checkpoint := func() {
		for i := range 6 {
			write(t, source+"/file", randomBytes(uint64(i), 2000))
			s := create(t, r, optionsFor(source))
			if i < 5 {
				forget(t, r, s.Number)
			}
		}
		if s := compact(t, r, CompactOptions{}); s.Checkpoint == 0 || s.Records == 0 {
			t.Fatalf("no checkpoint: %+v", s)
		}
	}
	checkpoint()
	records, err := r.Records()
	if err != nil {
		t.Fatal(err)
	}
	checkpoint()
	c := &checking{ctx: context.Background(), repo: r, log: logFacts{forgotten: map[uint64]bool{}, parts: map[archive.Digest]archive.Part{}, removed: map[archive.Digest]bool{}, whole: true}}
	if first, err := c.takeFirst(records); err != nil || first <= records[len(records)-1] || c.result.Damages+c.result.DamagedRecords > 0 {
		t.Errorf("it begins with %d, listed were %v: %v, %+v", first, records, err, c.result)
	}
}

// TestCheckInterrupted: a check that is interrupted finds no damage.
func TestCheckInterrupted(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	create(t, r, optionsFor(source))
	ctx, interrupt := context.WithCancel(context.Background())
	interrupt()
	c, err := Check(ctx, r, CheckOptions{Damage: func(text string) { t.Errorf("damage: %s", text) }})
	if !errors.Is(err, context.Canceled) || c.Damaged() {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestAgainstAnother: a tree that has nothing of a generation is not compared with it.
func TestAgainstAnother(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	write(t, source+"/etc/file", []byte("x"))
	create(t, r, optionsFor(source))
	_, err := Check(context.Background(), r, CheckOptions{Against: source + "/etc"})
	if err == nil || !strings.Contains(err.Error(), `has no "etc", nor anything else`) {
		t.Errorf("%v", err)
	}
}

// TestRecordsMovedAway follows the advice of docs/checking.md: where the end of
// the log is damaged, it is moved away, and its index, and the next run goes on from there
// with the parts that are there.
func TestRecordsMovedAway(t *testing.T) {
	r, source := spoiled(t)
	write(t, source+"/file", []byte("one"))
	create(t, r, optionsFor(source))
	large := string(randomBytes(5, 1<<20))
	write(t, source+"/large", []byte(large))
	create(t, r, optionsFor(source))
	last := filepath.Join(r.Dir(), "log", "000000000002.jsonl.zst")
	if err := errors.Join(os.Truncate(last, 50), os.Rename(last, filepath.Join(t.TempDir(), "2"))); err != nil {
		t.Fatal(err)
	}
	c := check(t, r, CheckOptions{})
	if c.DamagedRecords != 1 || c.Generations != 1 || !c.Damaged() {
		t.Errorf("%+v, %q", c.CheckResult, c.damages)
	}
	if err := os.Rename(filepath.Join(r.IndexDir(), "000000000002"), filepath.Join(t.TempDir(), "2")); err != nil {
		t.Fatal(err)
	}
	s := create(t, r, optionsFor(source))
	var stored int64
	for object, err := range r.Store().List("parts/") {
		if err != nil {
			t.Fatal(err)
		}
		stored += object.Stored
	}
	if s.Number != 2 || stored > 3<<19 {
		t.Errorf("%+v, %d bytes in parts", s, stored)
	}
	wantContents(t, r, 2, map[string]string{"file": "one", "large": large})
	if c := check(t, r, CheckOptions{ReadData: true}); c.Damaged() || c.Generations != 2 {
		t.Errorf("%+v, %q", c.CheckResult, c.damages)
	}
}

// TestRepairIndex: an index that is damaged or missing is rebuilt, and nothing else changes.
func TestRepairIndex(t *testing.T) {
	r, source := spoiled(t)
	write(t, source+"/file", []byte("one"))
	create(t, r, optionsFor(source))
	create(t, r, optionsFor(source))
	before := digests(t, filepath.Join(r.Dir(), "log"))
	if err := os.WriteFile(filepath.Join(r.IndexDir(), "000000000002", "MANIFEST"), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := check(t, r, CheckOptions{}); c.DamagedIndexes != 1 || !c.Damaged() || c.Generations != 2 {
		t.Errorf("%+v, %q", c.CheckResult, c.damages)
	}
	if c := check(t, r, CheckOptions{Repair: true}); !c.Repaired || c.Damaged() || len(c.damages) != 1 {
		t.Errorf("%+v, %q", c.CheckResult, c.damages)
	}
	if c := check(t, r, CheckOptions{ReadData: true}); c.Damaged() {
		t.Errorf("%+v, %q", c.CheckResult, c.damages)
	}
	if err := os.RemoveAll(r.IndexDir()); err != nil {
		t.Fatal(err)
	}
	check(t, r, CheckOptions{Repair: true})
	if _, err := os.Stat(filepath.Join(r.IndexDir(), "000000000002", "seal.json")); err != nil {
		t.Error(err)
	}
	wantSameFiles(t, before, digests(t, filepath.Join(r.Dir(), "log")))
}

// sealFile is the seal of an index, as docs/FORMAT.md has it.
type sealFile struct {
	Schema     int             `json:"schema"`
	Repository string          `json:"repository"`
	Record     uint64          `json:"record"`
	Digest     archive.Digest  `json:"record_digest"`
	Manifest   json.RawMessage `json:"manifest"`
	Tables     []sealedTable   `json:"tables"`
}

type sealedTable struct {
	ID     uint64       `json:"id"`
	Level  int          `json:"level"`
	Stored int64        `json:"stored"`
	BLAKE3 archive.Hash `json:"blake3"`
}

// resealed changes the table of the oldest run of a sealed index, or takes it away where change
// returns nothing, and seals the index again.
func resealed(t *testing.T, dir string, change func(table []byte) []byte) {
	t.Helper()
	name := filepath.Join(dir, "seal.json")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var s sealFile
	if err := json.Unmarshal(text, &s); err != nil || len(s.Tables) < 2 {
		t.Fatalf("%v, %s", err, text)
	}
	oldest := slices.MaxFunc(s.Tables, func(a, b sealedTable) int { return a.Level - b.Level })
	i := slices.Index(s.Tables, oldest)
	file := filepath.Join(dir, fmt.Sprintf("%06d.sst", oldest.ID))
	table, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	err = os.Remove(file) // it may be that of another index, too
	if table = change(table); table == nil {
		s.Tables = slices.Delete(s.Tables, i, i+1)
	} else {
		s.Tables[i].BLAKE3 = archive.HashOf(table)
		err = errors.Join(err, os.WriteFile(file, table, 0o600))
	}
	text, jsonErr := json.MarshalIndent(s, "", "\t")
	if err := errors.Join(err, jsonErr, os.WriteFile(name, append(text, '\n'), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// fullFS is a disk on which no directory can be made any more.
type fullFS struct{ disk.OS }

func (fullFS) Mkdir(string, fs.FileMode) error { return unix.ENOSPC }

// TestRepairWithoutRoom: an index that agrees with its seal, but not with the log, and whose
// successor cannot be kept, is not repaired.
func TestRepairWithoutRoom(t *testing.T) {
	r, source := spoiled(t)
	for _, content := range []string{"one", "two", "three"} {
		write(t, source+"/file", []byte(content))
		create(t, r, optionsFor(source))
	}
	resealed(t, filepath.Join(r.IndexDir(), "000000000003"), func([]byte) []byte { return nil })
	before := digests(t, r.IndexDir())
	on, err := archive.OpenOn(fullFS{}, r.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer on.Close()
	for _, temp := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		t.Setenv("TMPDIR", temp)
		c := check(t, on, CheckOptions{ReadData: true, Repair: true})
		if c.Repaired || !c.Damaged() || c.DamagedIndexes != 1 || !strings.Contains(strings.Join(c.notes, "\n"), "rebuilt") {
			t.Errorf("%+v, %q, notes %q", c.CheckResult, c.damages, c.notes)
		}
		wantSameFiles(t, before, digests(t, r.IndexDir()))
	}
	if c := check(t, r, CheckOptions{ReadData: true, Repair: true}); !c.Repaired || c.Damaged() || c.Generations != 3 {
		t.Errorf("with room: %+v, %q", c.CheckResult, c.damages)
	}
	if c := check(t, r, CheckOptions{ReadData: true}); c.Damaged() {
		t.Errorf("%+v, %q", c.CheckResult, c.damages)
	}
}

// TestRepairLooksAgain: where the index was so damaged that not all of the parts could be looked
// at, that is done with the one that was rebuilt, and what is wrong with them is reported, once.
func TestRepairLooksAgain(t *testing.T) {
	for name, c := range map[string]struct {
		files    int  // in the first generation
		tellsAll bool // of the parts: it is the contents that cannot be asked for
	}{"parts": {1, false}, "contents": {500, true}} {
		for _, readData := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, read %t", name, readData), func(t *testing.T) {
				r, source := spoiled(t)
				for i := range c.files {
					write(t, fmt.Sprintf("%s/%03d", source, i), randomBytes(uint64(i), 200))
				}
				create(t, r, optionsFor(source))
				parts, err := filepath.Glob(filepath.Join(r.Dir(), "parts/*/*"))
				if err != nil || len(parts) != 1 {
					t.Fatalf("parts %q, %v", parts, err)
				}
				write(t, source+"/000", []byte("changed"))
				create(t, r, optionsFor(source))
				resealed(t, filepath.Join(r.IndexDir(), "000000000002"), func(table []byte) []byte {
					table[40] ^= 1
					return table
				})
				db := openIndex(t, r)
				err = db.Parts(func(archive.Part) bool { return true })
				db.Close()
				if (err == nil) != c.tellsAll || err != nil && !errors.Is(err, index.ErrDamaged) {
					t.Fatalf("the parts: %v", err)
				}
				if err := os.Remove(parts[0]); err != nil {
					t.Fatal(err)
				}
				one := check(t, r, CheckOptions{ReadData: readData})
				if one.DamagedIndexes != 1 || c.tellsAll && (len(one.DamagedParts) != 1 || !one.DamagedParts[0].Unknown) {
					t.Errorf("not repaired: %+v, %q", one.CheckResult, one.damages)
				}
				got := check(t, r, CheckOptions{ReadData: readData, Repair: true})
				if !got.Repaired || !got.Damaged() || got.Damages != 2 || len(got.damages) != 2 || got.Generations != 2 || got.Parts != 2 || got.DataRead != readData {
					t.Errorf("%+v, %q", got.CheckResult, got.damages)
				}
				if len(got.DamagedParts) != 1 || !strings.Contains(parts[0], got.DamagedParts[0].Part.String()) || got.DamagedParts[0].Unknown || got.DamagedFiles != c.files || len(got.DamagedParts[0].Files) != c.files {
					t.Errorf("%+v", got.CheckResult)
				}
				if again := check(t, r, CheckOptions{ReadData: readData}); again.DamagedIndexes != 0 || again.Damages != 1 {
					t.Errorf("then: %+v, %q", again.CheckResult, again.damages)
				}
			})
		}
	}
}

// TestStrayIndex: an empty directory by the name of an index beyond the log tells of no lost
// records: it is in the way of nobody, and goes.
func TestStrayIndex(t *testing.T) {
	r, source := spoiled(t)
	stray := filepath.Join(r.IndexDir(), "000000000999")
	create(t, r, optionsFor(source))
	for _, repair := range []bool{false, true} {
		if err := os.Mkdir(stray, 0o700); err != nil {
			t.Fatal(err)
		}
		if c := check(t, r, CheckOptions{}); c.DamagedIndexes != 1 || c.DamagedRecords != 0 {
			t.Errorf("%+v, %q", c.CheckResult, c.damages)
		}
		if repair {
			check(t, r, CheckOptions{Repair: true})
		} else if s := create(t, r, optionsFor(source)); s.LostRecords != 0 {
			t.Errorf("%+v", s)
		}
		if c := check(t, r, CheckOptions{}); c.Damaged() {
			t.Errorf("repaired %t: %+v, %q", repair, c.CheckResult, c.damages)
		}
	}
	if err := os.Mkdir(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	compact(t, r, CompactOptions{}) // does not refuse
}

// TestIndexOfAnotherLog: an index that is sound, but says something else than the log.
func TestIndexOfAnotherLog(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	other := newRepository(t)
	write(t, dir+"/file", []byte("one"))
	o := optionsFor(dir)
	o.Time = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	create(t, r, o)
	write(t, dir+"/file", []byte("two"))
	create(t, other, o)
	for what, spoil := range map[string]func(c *checking){
		"a generation of another time": func(c *checking) { c.log.headers[0].Time = c.log.headers[0].Time.Add(1) },
		"a forgotten generation":       func(c *checking) { c.log.forgotten[1] = true },
		"a part more":                  func(c *checking) { c.log.parts[archive.Digest{1}] = archive.Part{Name: archive.Digest{1}} },
		"a part of another size": func(c *checking) {
			for name, p := range c.log.parts {
				p.Stored++
				c.log.parts[name] = p
			}
		},
		"another file": func(c *checking) {
			db, err := index.Open(other, index.Options{})
			if err != nil {
				t.Fatal(err)
			}
			c.db = db
			t.Cleanup(func() { db.Close() })
			if err := c.dataAndIndex(nil); err != nil {
				t.Fatal(err)
			}
		},
		"": func(c *checking) {
			if err := c.dataAndIndex(nil); err != nil {
				t.Fatal(err)
			}
		},
	} {
		db, err := index.Open(r, index.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := &checking{ctx: context.Background(), repo: r, options: CheckOptions{Progress: new(CheckProgress)}, rejected: map[uint64]bool{}, told: map[string]bool{}, db: db}
		if err := c.checkLog(); err != nil {
			t.Fatal(err)
		}
		spoil(c)
		gens, err := c.db.Generations()
		if err != nil {
			t.Fatal(err)
		}
		if what != "another file" {
			if err := c.compareWithLog(gens); err != nil {
				t.Fatal(err)
			}
		}
		if found := c.result.DamagedIndexes == 1; found != (what != "") {
			t.Errorf("%q: %+v", what, c.result)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCheckMeanwhile: runs that commit and indexes that are exchanged are no damage.
func TestCheckMeanwhile(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/file", []byte("0"))
	create(t, r, optionsFor(dir))
	done := make(chan error, 1)
	go func() {
		for i := range 8 {
			if err := os.WriteFile(dir+"/file", fmt.Append(nil, "round ", i), 0o644); err != nil {
				done <- err
				return
			}
			if _, err := Create(context.Background(), r, optionsFor(dir)); err != nil {
				done <- err
				return
			}
			db, err := index.Rebuild(r, index.Options{})
			if err != nil {
				done <- err
				return
			}
			_ = db.Close()
		}
		done <- nil
	}()
	for checks := 1; ; checks++ {
		if c := check(t, r, CheckOptions{ReadData: true}); c.Damaged() {
			t.Errorf("check %d: %q", checks, c.damages)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			t.Logf("%d checks", checks)
			return
		default:
		}
	}
}

// TestUnreadableIsNotWhole: what may not be read is no damage, but no success either.
func TestUnreadableIsNotWhole(t *testing.T) {
	r, source := spoiled(t)
	write(t, source+"/file", []byte("one"))
	create(t, r, optionsFor(source))
	for _, pattern := range []string{"log", "parts", "index"} {
		dir := filepath.Join(r.Dir(), pattern)
		if err := os.Rename(dir, dir+"-away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way, so that the directory cannot be listed
			t.Fatal(err)
		}
		result, err := Check(context.Background(), r, CheckOptions{})
		if err == nil && !result.Damaged() {
			t.Errorf("%s cannot be listed: %+v", pattern, result)
		}
		if err := errors.Join(os.Remove(dir), os.Rename(dir+"-away", dir)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(ctx, r, CheckOptions{ReadData: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestAgainst compares with trees that were changed honestly and silently.
func TestAgainst(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/same", []byte("same"))
	write(t, dir+"/edited", []byte("before"))
	write(t, dir+"/rotten", []byte("sound bytes"))
	write(t, dir+"/sub/removed", []byte("x"))
	write(t, dir+"/large", randomBytes(7, 5<<20))
	if err := errors.Join(os.Symlink("target", dir+"/link"), unix.Mkfifo(dir+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	_, err = sparse.WriteAt([]byte("end"), 300<<20)
	if err := errors.Join(err, sparse.Close()); err != nil {
		t.Fatal(err)
	}
	create(t, r, optionsFor(dir))
	if c := check(t, r, CheckOptions{Against: dir}); c.Compared != 10 || len(c.differences) != 0 || c.Damaged() {
		t.Errorf("unchanged: %+v, %q", c.CheckResult, c.differences)
	}

	write(t, dir+"/new", []byte("new"))
	write(t, dir+"/edited", []byte("afterwards"))
	if err := os.Remove(dir + "/sub/removed"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/same", 0o600); err != nil {
		t.Fatal(err)
	}
	c := check(t, r, CheckOptions{Against: dir})
	var kinds []string
	for _, d := range c.differences {
		kind, _, _ := strings.Cut(d, ": ")
		kinds = append(kinds, kind)
	}
	if want := []string{"1 .", "1 edited", "2 new", "1 same", "1 sub", "1 sub/removed"}; !slices.Equal(kinds, want) || c.Damaged() || c.Changed != 5 || c.NotStored != 1 {
		t.Errorf("changed since: %q, want %q; %+v", c.differences, want, c.CheckResult)
	}
	if _, err := Check(context.Background(), r, CheckOptions{Against: dir, Source: "none"}); !errors.Is(err, index.ErrNoGeneration) {
		t.Errorf("a source without generations: %v", err)
	}
}

// TestAgainstSilent: a log whose generation says of an unchanged file other
// things than are there, as if the file had rotted on the disk.
func TestAgainstSilent(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/rotten", []byte("sound bytes"))
	write(t, dir+"/swapped", []byte("x"))
	write(t, dir+"/sub/missing", []byte("x"))
	create(t, r, optionsFor(dir))
	db := openIndex(t, r)
	defer db.Close()
	entry := func(path string) archive.Entry {
		return archive.Entry{Path: path, Attr: entryOf(t, db, path).Attr}
	}
	rotten, swapped, gone := entry("rotten"), entry("swapped"), entry("sub/missing")
	rotten.Data = []archive.Extent{{Len: 1, Hash: archive.HashOf([]byte("x"))}} // and then a hole
	swapped.Attr.Mode, swapped.Data = 0o600, rotten.Data
	gone.Path, gone.Data = "sub/other", rotten.Data
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	for _, e := range []archive.Entry{rotten, gone, swapped} {
		if err := draft.Add(archive.Line{Entry: &e}); err != nil {
			t.Fatal(err)
		}
	}
	previous, err := r.RecordDigest(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := draft.Commit(archive.Header{Kind: archive.KindGeneration, Number: 2, Base: 1, Previous: previous, Name: "2026-11-22T03-00-00Z"}); err != nil {
		t.Fatal(err)
	}
	c := check(t, r, CheckOptions{Against: dir})
	want := []string{"0 rotten: content", "0 sub/other: is not there, and its directory looks unchanged", "0 swapped: mode 0644, not 0600"}
	if !slices.Equal(c.differences, want) || !c.Damaged() || c.Differ != 3 {
		t.Errorf("%q, want %q; %+v", c.differences, want, c.CheckResult)
	}
}

// TestAgainstInterrupted: the comparison of a file without holes ends within it.
func TestAgainstInterrupted(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write(t, name, []byte("x"))
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	a := &comparison{checking: &checking{ctx: ctx, options: CheckOptions{Progress: new(CheckProgress)}}}
	x := index.Extent{Len: 1, Hash: archive.HashOf([]byte("x"))}
	if same, err := a.holds(int(f.Fd()), x); !same || err != nil {
		t.Errorf("%t, %v", same, err)
	}
	interrupt()
	if _, err := a.holds(int(f.Fd()), x); !errors.As(err, new(fatal)) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestAgainstRemovedMeanwhile: what is removed while a tree is compared was changed since,
// also where its directory was looked at before.
func TestAgainstRemovedMeanwhile(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	for _, name := range []string{"/a", "/z", "/sub/file"} {
		write(t, dir+name, []byte("x"))
	}
	create(t, r, optionsFor(dir))
	if err := os.Chmod(dir+"/a", 0o600); err != nil {
		t.Fatal(err)
	}
	result, err := Check(t.Context(), r, CheckOptions{Against: dir, Difference: func(d Difference) {
		if d.Path != "a" {
			return
		}
		if err := os.Remove(dir + "/z"); err != nil {
			t.Error(err)
		}
	}})
	if err != nil || result.Changed != 2 || result.Differ != 0 || result.Uncompared != 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestAgainstVanished: what vanishes between two looks at it was changed since.
func TestAgainstVanished(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/file", []byte("x"))
	if err := errors.Join(os.Mkdir(dir+"/sub", 0o700), os.Mkdir(dir+"/listed", 0o700), os.Symlink("target", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	create(t, r, optionsFor(dir))
	db := openIndex(t, r)
	defer db.Close()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	a := &comparison{checking: &checking{ctx: t.Context(), repo: r, db: db, options: CheckOptions{Progress: new(CheckProgress)}}, view: db.At(1)}
	for i, name := range []string{"file", "sub", "link", "listed"} {
		stored := entryOf(t, db, name)
		live, err := statBeneath(fd, name)
		if err := errors.Join(err, os.Remove(filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		if name == "listed" {
			err = a.directory(liveDir{fd: fd, device: live.dev}, name, stored, live, true)
		} else {
			err = a.found(liveDir{fd: fd}, name, stored, live)
		}
		if err != nil || a.result.Changed != int64(i)+1 || a.result.Uncompared != 0 || a.result.Differ != 0 {
			t.Errorf("%s: %+v, %v", name, a.result, err)
		}
	}
}

// TestCompactionDuringCheck: parts that a compaction removes while they are
// checked are no damage.
func TestCompactionDuringCheck(t *testing.T) {
	for _, stage := range []string{"structure", "data"} {
		t.Run(stage, func(t *testing.T) {
			r, dir := newRepository(t), t.TempDir()
			write(t, dir+"/a", randomBytes(1, 5000))
			write(t, dir+"/b", randomBytes(2, 5000))
			create(t, r, optionsFor(dir))
			if err := os.Remove(dir + "/a"); err != nil {
				t.Fatal(err)
			}
			create(t, r, optionsFor(dir))
			c := &checking{ctx: context.Background(), repo: r, damaged: map[archive.Digest]*DamagedPart{}, rejected: map[uint64]bool{}, told: map[string]bool{},
				options: CheckOptions{ReadData: true, Progress: new(CheckProgress)}}
			for _, step := range []func() error{c.checkLog, c.openIndex} {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			defer c.db.Close()
			clean := func() {
				forget(t, r, 1)
				if s := compact(t, r, CompactOptions{}); s.Swept.Parts != 1 {
					t.Fatalf("compaction: %+v", s)
				}
			}
			if stage == "structure" {
				clean()
			}
			parts, err := c.structure()
			if err != nil {
				t.Fatal(err)
			}
			if stage == "data" {
				clean()
			}
			if err := c.readData(parts); err != nil {
				t.Fatal(err)
			}
			if c.result.Damages != 0 || len(c.damaged) != 0 {
				t.Errorf("%+v", c.result)
			}
		})
	}
}

// twice makes a repository where the same content lies in two parts, as two runs at
// the same time store it. It returns the names of their files, the one that counts last.
func twice(t *testing.T, content []byte) (*archive.Repository, []string) {
	t.Helper()
	r, dir := spoiled(t)
	other, ran := t.TempDir(), false
	write(t, dir+"/file", content)
	write(t, other+"/file", content)
	write(t, other+"/more", []byte("so that the parts differ"))
	o := optionsFor(dir)
	o.hooks.at = func(point string) {
		if point == "base chosen" && !ran {
			ran = true
			o := optionsFor(other)
			o.Source = "other"
			create(t, r, o)
		}
	}
	create(t, r, o)
	db := openIndex(t, r)
	defer db.Close()
	var parts []string
	if err := db.Parts(func(p archive.Part) bool {
		parts = append(parts, filepath.Join(r.Dir(), archive.PartStoreName(p.Name)))
		return true
	}); err != nil || len(parts) != 2 {
		t.Fatalf("%q, %v", parts, err)
	}
	return r, parts
}

// harms are what may happen to the file of a part.
var harms = map[string]func(path string) error{
	"missing": os.Remove,
	"short":   func(path string) error { return os.Truncate(path, 1000) },
	"a flipped bit": func(path string) error {
		b, err := os.ReadFile(path)
		if err == nil {
			b[5000] ^= 1
			err = os.WriteFile(path, b, 0o600)
		}
		return err
	},
}

// harmed runs a test with each harm to the part that counts, of two that have a content.
func harmed(t *testing.T, content []byte, test func(t *testing.T, r *archive.Repository, parts []string)) {
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			r, parts := twice(t, content)
			if err := harm(parts[1]); err != nil {
				t.Fatal(err)
			}
			test(t, r, parts)
		})
	}
}

// TestContentTwice: a content that lies in two parts is read from the one that is whole;
// the other one is damaged all the same.
func TestContentTwice(t *testing.T) {
	content := randomBytes(3, 100_000)
	harmed(t, content, func(t *testing.T, r *archive.Repository, parts []string) {
		wantContents(t, r, 2, map[string]string{"file": string(content)})
		c := check(t, r, CheckOptions{ReadData: true})
		if len(c.DamagedParts) != 1 || c.DamagedFiles != 0 || c.HitGenerations != 0 {
			t.Fatalf("%+v, %q", c.CheckResult, c.damages)
		}
		if p := c.DamagedParts[0]; !strings.HasSuffix(parts[1], archive.PartStoreName(p.Part)) || p.Contents != 0 || p.Elsewhere != 1 || p.Needless {
			t.Errorf("%+v", p)
		}
		notes := exported(t, r, content)
		if len(notes) != 1 || !strings.HasSuffix(notes[0], ": read from another part, which has the same content") {
			t.Errorf("%q", notes)
		}
		if err := os.Remove(parts[0]); err != nil {
			t.Fatal(err)
		}
		c = check(t, r, CheckOptions{ReadData: true})
		if c.DamagedFiles != 3 || c.HitGenerations != 2 {
			t.Errorf("both are lost: %+v, %q", c.CheckResult, c.damages)
		}
	})
}

// TestCompactContentTwice: of a content that lies in two parts, the place that is not read
// goes only after the other one was read. Where that is bad, the log says then that it is
// the first which is of no use.
func TestCompactContentTwice(t *testing.T) {
	content := randomBytes(3, 100_000)
	wantBoth := func(t *testing.T, r *archive.Repository) {
		t.Helper()
		wantContents(t, r, 1, map[string]string{"file": string(content), "more": "so that the parts differ"})
		wantContents(t, r, 2, map[string]string{"file": string(content)})
	}
	t.Run("both are whole", func(t *testing.T) {
		r, _ := twice(t, content)
		if s := compact(t, r, CompactOptions{}); s.Damaged != 0 || s.Removed != 1 || s.New != 1 || s.NewBytes > 10_000 {
			t.Errorf("%+v", s)
		}
		wantBoth(t, r)
	})
	harmed(t, content, func(t *testing.T, r *archive.Repository, _ []string) {
		var problems []string
		s := compact(t, r, CompactOptions{Problem: func(err error) { problems = append(problems, err.Error()) }})
		if s.Damaged != 1 || len(problems) != 1 || s.Removed != 0 {
			t.Errorf("%+v, %q", s, problems)
		}
		wantBoth(t, r)
		if s := compact(t, r, CompactOptions{}); s.Damaged != 0 || s.WholeParts != 1 || s.Removed != 1 {
			t.Errorf("the second time: %+v", s)
		}
		wantBoth(t, r)
		if c := check(t, r, CheckOptions{ReadData: true}); c.Damages != 0 {
			t.Errorf("%q", c.damages)
		}
	})
	t.Run("no time to read the other place", func(t *testing.T) {
		r, _ := twice(t, content)
		forget(t, r, 1) // after that nothing of the older part is needed
		if s := compact(t, r, CompactOptions{TimeLimit: time.Nanosecond}); s.Removed != 0 || !s.Limited {
			t.Errorf("%+v", s)
		}
		if s := compact(t, r, CompactOptions{}); s.WholeParts != 1 || s.Removed != 1 || s.Limited {
			t.Errorf("without a limit: %+v", s)
		}
		wantContents(t, r, 2, map[string]string{"file": string(content)})
	})
	t.Run("both are damaged", func(t *testing.T) {
		r, parts := twice(t, content)
		for _, part := range parts {
			if err := harms["a flipped bit"](part); err != nil {
				t.Fatal(err)
			}
		}
		if s := compact(t, r, CompactOptions{}); s.Damaged != 2 || s.Removed != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCheckpointContentTwice: a checkpoint says where a content lies besides the place that
// counts, also one that repairs the log.
func TestCheckpointContentTwice(t *testing.T) {
	content := randomBytes(3, 100_000)
	harmed(t, content, func(t *testing.T, r *archive.Repository, _ []string) {
		damage(t, filepath.Join(r.Dir(), archive.RecordStoreName(1)))
		if c := check(t, r, CheckOptions{Repair: true}); !c.Repaired {
			t.Fatalf("%+v, %q", c.CheckResult, c.damages)
		}
		wantContents(t, r, 2, map[string]string{"file": string(content)})
		if c := check(t, r, CheckOptions{ReadData: true}); c.DamagedFiles != 0 || c.DamagedRecords != 0 {
			t.Errorf("%+v, %q", c.CheckResult, c.damages)
		}
	})
}

// exported exports the generation 2, which must have a file of that content, and returns what
// is noted.
func exported(t *testing.T, r *archive.Repository, content []byte) (notes []string) {
	t.Helper()
	db := openIndex(t, r)
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o := ExportOptions{Note: func(text string) { notes = append(notes, text) }}
	if err := Export(context.Background(), &out, r, db, gens[1], o); err != nil || !bytes.Contains(out.Bytes(), content) {
		t.Errorf("export: %v", err)
	}
	return notes
}

// TestRemovedMeanwhile: a part that another machine removes while it is checked is not
// damaged, whatever reading it says: a client of NFS gets ESTALE, or what is left of it.
func TestRemovedMeanwhile(t *testing.T) {
	for _, read := range []bool{false, true} {
		r, source := spoiled(t)
		write(t, source+"/file", randomBytes(1, 10_000))
		create(t, r, optionsFor(source))
		part := partsOf(t, r, 1, "file")[0]
		write(t, source+"/file", []byte("new"))
		create(t, r, optionsFor(source))
		forget(t, r, 1)
		c := &checking{ctx: context.Background(), repo: r, options: CheckOptions{ReadData: true, Progress: new(CheckProgress)},
			damaged: map[archive.Digest]*DamagedPart{}, rejected: map[uint64]bool{}}
		if err := errors.Join(c.checkLog(), c.openIndex()); err != nil {
			t.Fatal(err)
		}
		defer c.db.Close()
		whole := func() []archive.Part {
			parts, err := c.structure()
			if err != nil || c.result.Damages > 0 {
				t.Fatalf("%v, %d damages", err, c.result.Damages)
			}
			return parts
		}
		parts := []archive.Part{}
		if read {
			parts = whole()
		}
		if err := os.Truncate(filepath.Join(r.Dir(), archive.PartStoreName(part)), 5000); err != nil {
			t.Fatal(err)
		}
		commitLines(t, r, archive.KindCompaction, archive.Line{Removed: &part})
		if !read {
			parts = whole()
		}
		if err := c.readData(parts); err != nil || c.result.Damages > 0 || c.result.ReadParts != 1 {
			t.Errorf("%v, %+v", err, c.result)
		}
	}
}
