package backup

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

func TestTemperatureAfter(t *testing.T) {
	for life, want := range map[time.Duration]temperature{
		-time.Hour: 1, // the clock was set back
		0:          1, day: 1, 36*time.Hour - 1: 1, 36 * time.Hour: 2, 2 * day: 2, 4*day - 1: 2, 4 * day: 3, 7 * day: 3,
		8 * day: 4, 16 * day: 5, 32*day - 1: 5, 32 * day: 6, 365 * day: 6,
	} {
		for kept, above := range map[int]temperature{0: 0, 1: 0, 2: 0, 3: 6, 5: 6, 6: 12, 1000: 12} {
			if got := temperatureAfter(life, kept); got != want+above {
				t.Errorf("after %v, of %d versions: %d, want %d", life, kept, got, want+above)
			}
		}
	}
	if most := temperatureAfter(365*day, 1000); int(most) != temperatures-1 {
		t.Errorf("the last of %d temperatures is %d", temperatures, most)
	}
}

// partsOf returns the parts that the extents of a file in the top directory lie in.
func partsOf(t *testing.T, r *archive.Repository, number uint64, name string) (list []archive.Digest) {
	t.Helper()
	db := openIndex(t, r)
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(gens, func(g index.Generation) bool { return g.Number == number })
	entry, err := db.At(number).Lookup(gens[i].Root, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for at := int64(0); at < entry.Attr.Size; {
		e, ok, err := db.ExtentAt(entry.Ino, at)
		if err != nil || !ok {
			t.Fatalf("%s at %d: %v, %v", name, at, ok, err)
		}
		place, err := db.Content(e.Hash)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, place.Part.Name)
		at = e.Offset + e.Len
	}
	return list
}

// spread names the files that share a part, part by part.
func spread(t *testing.T, r *archive.Repository, number uint64, names ...string) string {
	t.Helper()
	together := map[archive.Digest]string{}
	for _, name := range names {
		for _, part := range slices.Compact(partsOf(t, r, number, name)) {
			together[part] += name
		}
	}
	var list []string
	for _, names := range together {
		list = append(list, names)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// TestPlacement: on day 100, contents are replaced that were made on day 0, 94, 95 and
// 99, some of files of which more versions are kept, and a file is new.
func TestPlacement(t *testing.T) {
	for unplaced, want := range map[bool]string{false: "a bc d e f gh", true: "abcdefgh"} {
		r, dir := newRepository(t), t.TempDir()
		number := uint64(0)
		backUp := func(day int, files string) {
			for _, name := range files {
				write(t, dir+"/"+string(name), randomBytes(uint64(100*day)+uint64(name), 2000))
			}
			o := optionsFor(dir)
			o.Time, o.Unplaced = time.Date(2026, 1, 1+day, 3, 0, 0, 0, time.UTC), unplaced
			create(t, r, o)
			number++
		}
		backUp(0, "abcde")
		for day := 90; day < 94; day++ {
			backUp(day, "e")
		}
		backUp(94, "b")
		backUp(95, "ce")
		backUp(97, "f")
		backUp(98, "f")
		backUp(99, "df")
		backUp(100, "abcdefgh")
		if got := spread(t, r, number, "a", "b", "c", "d", "e", "f", "g", "h"); got != want {
			t.Errorf("unplaced %v: %q, want %q", unplaced, got, want)
		}
	}
}

// TestPlacementBySource: versions of another source do not count.
func TestPlacementBySource(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	at := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	number := uint64(0)
	backUp := func(source, files string) {
		at = at.AddDate(0, 0, 1)
		number++
		for _, name := range files {
			write(t, dir+"/"+string(name), randomBytes(number*100+uint64(name), 2000))
		}
		o := optionsFor(dir)
		o.Time, o.Source = at, source
		create(t, r, o)
	}
	backUp("", "ab")
	for range 6 {
		backUp("other", "a")
	}
	backUp("", "ab")
	at = at.AddDate(0, 0, 40)
	backUp("", "ab")
	if got := spread(t, r, number, "a", "b"); got != "ab" {
		t.Errorf("%q, want both together", got)
	}
}

// TestPlacementOfChunks: of a file that is changed in place, what replaces a young
// chunk is hot; of one that grows, only the last chunk is: it will be replaced,
// and those before it are whole. What is written into a hole is new.
func TestPlacementOfChunks(t *testing.T) {
	r, err := archive.Init(t.TempDir()+"/repo", archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir := t.TempDir()
	at := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	backUp := func(log, table []byte) {
		write(t, dir+"/log", log)
		write(t, dir+"/table", table)
		o := optionsFor(dir)
		o.Time = at
		create(t, r, o)
		at = at.AddDate(0, 0, 1)
	}
	log, table := randomBytes(1, 2<<20), randomBytes(2, 2<<20)
	writeSparse(t, dir+"/sparse", 192<<10, randomBytes(3, 64<<10))
	backUp(log[:3<<19], table)
	changed := slices.Clone(table)
	copy(changed[1<<20:], "changed")
	writeSparse(t, dir+"/sparse", 0, randomBytes(4, 16<<10))
	backUp(log, changed)

	first, second := partsOf(t, r, 1, "log"), partsOf(t, r, 2, "log")
	grown := second[len(first)-1:] // from the chunk on that was the last
	hotPart := second[len(second)-1]
	if len(grown) < 4 {
		t.Fatalf("%d chunks before, %d after", len(first), len(second))
	}
	for i, part := range grown[:len(grown)-1] {
		if part == hotPart {
			t.Errorf("chunk %d of %d new ones lies with the last", i, len(grown))
		}
	}
	for i, part := range partsOf(t, r, 2, "table") {
		if part != first[0] && part != hotPart {
			t.Errorf("chunk %d of the table is cold", i)
		}
	}
	if !slices.Contains(partsOf(t, r, 2, "table"), hotPart) {
		t.Error("what was changed in the table is not hot")
	}
	if sparse := partsOf(t, r, 2, "sparse"); sparse[0] == hotPart || sparse[len(sparse)-1] != first[0] {
		t.Errorf("parts of the sparse file: %v", sparse)
	}
}

// writeSparse writes data at an offset of a file, and leaves the rest as it is.
func writeSparse(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

// TestGroups: what only older generations need is compacted into parts of its
// own, which go with them, and nothing of them is copied again.
func TestGroups(t *testing.T) {
	for unplaced, want := range map[bool]struct {
		together   string
		whole, new int
	}{false: {"a b cd", 1, 0}, true: {"abcd", 0, 1}} {
		r, dir := newRepository(t), t.TempDir()
		for _, name := range "abcdx" {
			write(t, dir+"/"+string(name), randomBytes(uint64(name), 4000))
		}
		create(t, r, optionsFor(dir))
		for _, gone := range "xab" { // b to d are in the last generation but one
			if err := os.Remove(dir + "/" + string(gone)); err != nil {
				t.Fatal(err)
			}
			create(t, r, optionsFor(dir))
		}
		forget(t, r, 1)
		if s := compact(t, r, CompactOptions{Unplaced: unplaced}); s.Removed != 1 || s.New != len(strings.Fields(want.together)) || s.DeadAfter != 0 {
			t.Errorf("unplaced %v: %+v", unplaced, s)
		}
		if got := spread(t, r, 2, "a", "b", "c", "d"); got != want.together {
			t.Errorf("unplaced %v: %q, want %q", unplaced, got, want.together)
		}
		forget(t, r, 2)
		if s := compact(t, r, CompactOptions{Unplaced: unplaced}); s.Removed != 1 || s.WholeParts != want.whole || s.New != want.new {
			t.Errorf("unplaced %v, once 2 is forgotten: %+v", unplaced, s)
		}
	}
}

// TestMerges: of small parts that hold what is current, and that are not new, the
// smallest are merged when there are too many.
func TestMerges(t *testing.T) {
	const current = 7
	usageOf := func(small int) *usage {
		u := &usage{partSize: 1000, index: index.Usage{Current: current}}
		add := func(name byte, stored int64, needs ...index.Need) *partUse {
			p := &partUse{live: stored}
			p.Name[0], p.Stored = name, stored
			for _, need := range needs {
				p.spans = append(p.spans, span{rawLen: 100, need: need})
			}
			u.parts = append(u.parts, p)
			u.stored += stored
			return p
		}
		add('L', 250, current)            // large enough
		add('H', 10, current, 3)          // half of it historic
		add('D', 10, current).bad = true  // damaged
		add('M', 30, current, current, 6) // most of it is current
		for i := range small - 1 {
			add('s', int64(200-i), current)
		}
		for range mostSmall {
			add('n', 10, current) // new
		}
		for i, p := range u.parts {
			p.age = len(u.parts) - i
		}
		return u
	}
	names := func(list []*partUse) (s string) {
		for _, p := range list {
			s += string(p.Name[:1])
		}
		return s
	}
	for small, want := range map[int]string{
		2: "", 128: "", // not too many
		129: "M" + strings.Repeat("s", 64),
		134: "M" + strings.Repeat("s", 69),
	} {
		if got := names(usageOf(small).plan(0)); got != want {
			t.Errorf("%d small parts: %q, want %q", small, got, want)
		}
	}
	u := usageOf(130)
	u.parts[4].dead, u.parts[4].live, u.dead = 50, 50, 50
	if got, want := names(u.plan(0)), "s"+"M"+strings.Repeat("s", 64); got != want {
		t.Errorf("one is compacted anyway: %q, want %q", got, want)
	}
}

// TestMerged: parts that are merged are one, and all files are still there.
func TestMerged(t *testing.T) {
	r, want := manySmallParts(t)
	s := compact(t, r, CompactOptions{})
	if s.Parts != 257 || s.Removed != 65 || s.New != 1 || s.DeadBytes != 0 || s.Swept.Parts != 65 {
		t.Errorf("%+v", s)
	}
	if again := compact(t, r, CompactOptions{}); again.Removed != 0 {
		t.Errorf("again: %+v", again)
	}
	wantContents(t, r, 257, want)
}

// TestMergedWithLimit: a limit that has room for one part merges two at a time: one
// alone would be copied to itself.
func TestMergedWithLimit(t *testing.T) {
	r, want := manySmallParts(t)
	s := compact(t, r, CompactOptions{Limit: 1})
	if s.Removed != 2 || s.New != 1 || !s.Limited {
		t.Errorf("%+v", s)
	}
	wantContents(t, r, 257, want)
}

// manySmallParts makes a repository of 257 generations, the last one with a file of each,
// which it returns.
func manySmallParts(t *testing.T) (*archive.Repository, map[string]string) {
	r, dir := newRepository(t), t.TempDir()
	want := map[string]string{}
	for i := range mostSmall + mostSmall + 1 {
		name := string(rune('a'+i/26)) + string(rune('a'+i%26))
		want[name] = string(randomBytes(uint64(i), 100))
		write(t, dir+"/"+name, []byte(want[name]))
		create(t, r, optionsFor(dir))
	}
	return r, want
}
