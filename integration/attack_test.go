package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/index"
	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// These tests damage a repository in every way that a disk, a copy or a hand
// can, and after each look at it as a mount does, with the same packages: every
// file of every generation gives the right bytes or an error, and `check
// --read-data` finds the damage and names exactly the files that give the error.
// SOAK=1 makes them thorough; without it they try a share of the same.

// soak reports whether there is time for everything.
func soak() bool { return os.Getenv("SOAK") != "" }

// fileAt is a file of one generation.
type fileAt struct {
	number uint64 // of the generation
	path   string
}

// victim is a repository that is damaged and mended again and again.
type victim struct {
	t    *testing.T
	dir  string
	want map[fileAt]string // contents
	gens int
	take func(args ...string) // makes a generation
}

// large is a file that is stored in chunks.
const large = "d4/large"

// newVictim makes a repository on a tmpfs, of three generations of a source and
// one of another. size is about how many bytes of files there are. Each part has one
// frame of data.
func newVictim(t *testing.T, files, size int) *victim {
	t.Helper()
	return newVictimOf(t, "64KiB", files, size, 0)
}

// newFramedVictim makes one whose parts have several frames of data, of small files, which
// fill 1 MiB each, and of the chunks of a large file of chunked bytes.
func newFramedVictim(t *testing.T, files, size, chunked int) *victim {
	t.Helper()
	return newVictimOf(t, "4MiB", files, size, chunked)
}

func newVictimOf(t *testing.T, partSize string, files, size, chunked int) *victim {
	t.Helper()
	base := tmpfs(t, 512<<20)
	src := mkdir(t, base, "src")
	r := &repo{t: t, dir: filepath.Join(base, "repo")}
	run(t, mkbackup, "init", r.dir, "--part-size", partSize)
	v := &victim{t: t, dir: r.dir, want: map[fileAt]string{}}
	put := func(round, share int) {
		for i := range files {
			if i%share != 0 {
				continue
			}
			content := treetest.Content(uint64(1000*round+i), int64(1+(i*7919)%(2*size/files)))
			if i%3 == 0 { // some that compress
				content = bytes.Repeat([]byte(fmt.Sprintf("line %d of %d\n", i, round)), len(content)/16+1)
			}
			write(t, filepath.Join(mkdir(t, src, fmt.Sprint("d", i%5)), fmt.Sprintf("f%03d", i)), string(content))
		}
		if chunked > 0 {
			content := treetest.Content(7, int64(chunked))
			content[chunked/2] ^= byte(round)
			write(t, filepath.Join(src, large), string(content))
		}
	}
	take := func(args ...string) {
		s := r.all(src, args...)
		v.gens++
		must(t, filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			v.want[fileAt{s.Number, strings.TrimPrefix(path, src+"/")}] = string(b)
			return err
		}))
	}
	v.take = take
	put(1, 1)
	take()
	put(2, 4)
	take()
	take("--source", "other")
	put(3, 7)
	must(t, os.RemoveAll(filepath.Join(src, "d3")))
	take()
	return v
}

func (v *victim) glob(pattern string) []string { return (&repo{t: v.t, dir: v.dir}).glob(pattern) }

// look is what a reader of the whole repository and a check see.
type look struct {
	failed  map[fileAt]bool // those of the generations that are there which give an error
	gone    map[uint64]bool // generations that are not there
	result  backup.CheckResult
	checked error
	said    []string
}

// look reads and checks everything. Wrong bytes fail the test.
func (v *victim) look(what string) look {
	v.t.Helper()
	l := look{failed: map[fileAt]bool{}, gone: map[uint64]bool{}}
	for f := range v.want {
		l.gone[f.number] = true
	}
	r, err := archive.Open(v.dir)
	if err != nil {
		l.checked = err
		return l
	}
	defer r.Close()
	v.read(what, r, &l)
	l.result, l.checked = backup.Check(context.Background(), r, backup.CheckOptions{ReadData: true,
		Damage: func(text string) { l.said = append(l.said, text) }})
	return l
}

func (v *victim) read(what string, r *archive.Repository, l *look) {
	db, err := index.Open(r, index.Options{Partial: true, Temporary: true})
	if err != nil {
		return
	}
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		v.t.Fatalf("%s: %v", what, err)
	}
	reader := archive.NewReader(r.Store(), 8<<20)
	defer reader.Close()
	for _, g := range gens {
		delete(l.gone, g.Number)
		seen := 0
		v.walk(db.At(g.Number), g.Root, "", func(path string, e index.Dirent) {
			want, ok := v.want[fileAt{g.Number, path}]
			if !ok {
				v.t.Errorf("%s: generation %d has a file %q that never was", what, g.Number, path)
				return
			}
			seen++
			got := make([]byte, e.Attr.Size)
			_, err := db.ReadAt(reader, e.Ino, got, 0)
			if err != nil && !errors.Is(err, io.EOF) {
				l.failed[fileAt{g.Number, path}] = true
			} else if string(got) != want {
				v.t.Errorf("%s: generation %d, %s: wrong bytes and no error", what, g.Number, path)
			}
		})
		for f := range v.want {
			if f.number == g.Number {
				seen--
			}
		}
		if seen != 0 {
			v.t.Errorf("%s: generation %d has %d files too few", what, g.Number, -seen)
		}
	}
}

func (v *victim) walk(view index.View, dir index.DirID, path string, use func(string, index.Dirent)) {
	var list []index.Dirent
	must(v.t, view.List(dir, "", func(e index.Dirent) bool { list = append(list, e); return true }))
	for _, e := range list {
		if e.Dir != 0 {
			v.walk(view, e.Dir, path+e.Name+"/", use)
		} else if e.Attr.Type == archive.TypeFile {
			use(path+e.Name, e)
		}
	}
}

// piece is what of a file of the repository was damaged.
type piece struct {
	name string // absolute
	at   int64  // of a part: where the frame or the tail begins, or the shorter of two parts ends; of a record -1
}

// wantDamage fails the test unless the check found damage and named exactly the
// files that cannot be read, and the pieces that were damaged: of parts, each with its
// stored offset, of records, each with its number. It returns how many files those are.
func (v *victim) wantDamage(what string, l look, pieces ...piece) int {
	v.t.Helper()
	if l.checked != nil {
		v.t.Errorf("%s: check: %v", what, l.checked)
		return 0
	}
	if !l.result.Damaged() || len(l.said) == 0 {
		v.t.Errorf("%s: check finds nothing: %+v", what, l.result)
	}
	v.wantPieces(what, l, pieces)
	named := map[fileAt]bool{}
	for _, part := range l.result.DamagedParts {
		for _, holder := range part.Files {
			for _, g := range holder.Generations {
				named[fileAt{g.Number, holder.Path}] = true
			}
		}
	}
	if !maps.Equal(named, l.failed) {
		v.t.Errorf("%s: check names %d files, %d cannot be read\n%v\n%v", what, len(named), len(l.failed), named, l.failed)
	}
	if len(l.gone) > 0 && l.result.DamagedRecords == 0 {
		v.t.Errorf("%s: %d generations are not there, and check does not say so", what, len(l.gone))
	}
	return len(l.failed)
}

func (v *victim) wantPieces(what string, l look, pieces []piece) {
	v.t.Helper()
	want, records := map[string][]int64{}, 0
	for _, p := range pieces {
		name := filepath.Base(p.name)
		if number, ok := strings.CutSuffix(name, ".jsonl.zst"); ok {
			records++
			n, err := strconv.Atoi(number)
			must(v.t, err)
			if !slices.ContainsFunc(l.said, func(said string) bool { return namesRecord(said, n) }) {
				v.t.Errorf("%s: check does not name record %d: %q", what, n, l.said)
			}
		} else if !slices.Contains(want[name], p.at) {
			want[name] = append(want[name], p.at)
		}
	}
	// A last record that says what it said, spelled otherwise, is only found by the index.
	if (records > 0) != (l.result.DamagedRecords+l.result.DamagedIndexes > 0) {
		v.t.Errorf("%s: check counts %d damaged records and %d indexes, %d records were damaged: %q",
			what, l.result.DamagedRecords, l.result.DamagedIndexes, records, l.said)
	}
	got := map[string][]int64{}
	for _, part := range l.result.DamagedParts {
		name := part.Part.String() + ".tar.zst"
		for _, damage := range part.Damages {
			got[name] = append(got[name], damage.StoredOffset)
		}
	}
	for _, offsets := range want {
		slices.Sort(offsets)
	}
	if !maps.EqualFunc(want, got, slices.Equal) {
		v.t.Errorf("%s: check finds damage of parts at %v, it is at %v: %q", what, got, want, l.said)
	}
}

var (
	recordRange = regexp.MustCompile(`records? (\d+)(?: to (\d+))?`)
	recordsLost = regexp.MustCompile(`index (\d+) was made with records up to that number, but the log ends with record (\d+)`)
)

// namesRecord reports whether a message of check is about a record, alone or in a range.
func namesRecord(said string, n int) bool {
	number := func(text string) int {
		number, _ := strconv.Atoi(text)
		return number
	}
	if m := recordsLost.FindStringSubmatch(said); m != nil {
		return number(m[2]) < n && n <= number(m[1])
	}
	for _, m := range recordRange.FindAllStringSubmatch(said, -1) {
		first := number(m[1])
		if first <= n && n <= max(first, number(m[2])) {
			return true
		}
	}
	return false
}

// damaged returns the pieces of a file that are not as they were.
func (v *victim) damaged(name string, was []byte) (list []piece) {
	v.t.Helper()
	now, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []piece{{name, 0}}
	case err != nil:
		v.t.Fatal(err)
	case strings.HasSuffix(name, ".jsonl.zst"):
		return []piece{{name, -1}}
	case len(now) != len(was):
		return []piece{{name, int64(min(len(now), len(was)))}}
	}
	starts := frames(was)
	tail := starts[len(starts)-1]
	if !bytes.Equal(now[tail:], was[tail:]) {
		return []piece{{name, int64(tail)}} // without it, nothing is known of the frames
	}
	for i, start := range starts[:len(starts)-1] {
		if end := starts[i+1]; !bytes.Equal(now[start:end], was[start:end]) {
			list = append(list, piece{name, int64(start)})
		}
	}
	return list
}

// filesOf returns, for each part, the files that have something in it.
func (v *victim) filesOf(parts []string) map[string]map[fileAt]bool {
	v.t.Helper()
	files := map[string]map[fileAt]bool{}
	for _, name := range parts {
		mend := replace(v.t, name, nil)
		files[name] = v.look("a part deleted").failed
		mend()
	}
	return files
}

// wantWhole fails the test unless all is well: the last damage was mended.
func (v *victim) wantWhole() {
	v.t.Helper()
	l := v.look("mended")
	if l.checked != nil || l.result.Damaged() || len(l.failed)+len(l.gone) > 0 || l.result.Generations != v.gens {
		v.t.Fatalf("not whole: %+v, %v, %v", l.result, l.checked, l.said)
	}
}

// flip inverts a bit of a file.
func flip(t *testing.T, name string, bit int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], bit/8)
	must(t, err)
	b[0] ^= 1 << (bit % 8)
	_, err = f.WriteAt(b[:], bit/8)
	must(t, err)
}

// TestEveryBit flips the bits of a small repository one by one.
func TestEveryBit(t *testing.T) {
	v := newVictim(t, 6, 600)
	v.wantWhole()
	stride := 11 // bits; prime to 8, so that every bit of a byte has its turn
	if soak() {
		stride = 1
	}
	flips, hit := 0, 0
	for _, name := range append(v.glob("parts/*/*"), v.glob("log/*")...) {
		whole, err := os.ReadFile(name)
		must(t, err)
		for bit := int64(0); bit < 8*int64(len(whole)); bit += int64(stride) {
			what := fmt.Sprintf("%s, bit %d", filepath.Base(name)[:14], bit)
			flip(t, name, bit)
			hit += v.wantDamage(what, v.look(what), v.damaged(name, whole)...)
			flip(t, name, bit)
			flips++
		}
	}
	v.wantWhole()
	t.Logf("%d flips, %d times a file could not be read", flips, hit)
}

// TestEveryBitOfTheConfig flips the bits of repo.json one by one. Nothing vouches for the time and the
// part size, and no byte that is served depends on them.
func TestEveryBitOfTheConfig(t *testing.T) {
	v := newVictim(t, 6, 600)
	name := filepath.Join(v.dir, "repo.json")
	text, err := os.ReadFile(name)
	must(t, err)
	free := regexp.MustCompile(`"created": *"[^"]*"|"part_size": *\d+`).FindAllIndex(text, -1)
	format := regexp.MustCompile(`"format": *\d`).FindIndex(text)
	if len(free) != 2 || format == nil {
		t.Fatalf("repo.json is %s", text)
	}
	codes := map[int]int{}
	for bit := range 8 * len(text) {
		what := fmt.Sprintf("repo.json, bit %d", bit)
		at := bit / 8
		flip(t, name, int64(bit))
		l := v.look(what)
		code := configCode(l)
		codes[code]++
		isFree := slices.ContainsFunc(free, func(r []int) bool { return r[0] <= at && at < r[1] })
		otherCase := bit%8 == 5 && (text[at]|0x20 >= 'a' && text[at]|0x20 <= 'z') // of a field's name, which is the same to Go
		switch {
		case code == 4:
		case code == 0 && (isFree || otherCase):
		case code == 1 && at == format[1]-1: // a greater version
		default:
			t.Errorf("%s: check would end with %d: %+v, %v", what, code, l.result, l.checked)
		}
		if l.checked == nil && len(l.failed)+len(l.gone) > 0 {
			t.Errorf("%s: %d files cannot be read, %d generations are not there", what, len(l.failed), len(l.gone))
		}
		if soak() || bit%11 == 0 {
			if res := runCmd(t, exec.Command(mkbackup, "check", "--read-data", v.dir)); res.code != code {
				t.Errorf("%s: check ends with %d, want %d: %s", what, res.code, code, res.stderr)
			}
		}
		flip(t, name, int64(bit))
	}
	v.wantWhole()
	if codes[0] == 0 || codes[1] == 0 || codes[4] == 0 {
		t.Errorf("exit codes %v", codes)
	}
	t.Logf("exit codes of check, and how often: %v", codes)
}

// configCode returns the exit code that check has for what a look saw.
func configCode(l look) int {
	switch {
	case errors.Is(l.checked, archive.ErrNewerFormat):
		return 1
	case l.checked != nil || l.result.Damaged():
		return 4
	}
	return 0
}

// TestRandomFlips flips random bits of a larger repository, one at a time.
func TestRandomFlips(t *testing.T) {
	v := newFramedVictim(t, 60, 200_000, 5<<18)
	rng := rand.New(rand.NewPCG(1, 2))
	parts := v.glob("parts/*/*")
	names := append(slices.Clone(parts), v.glob("log/*")...)
	filesOf := v.filesOf(parts)
	hit, partly := 0, 0
	flips := scale(2000, 20_000)
	for range flips {
		name := names[rng.IntN(len(names))]
		was, err := os.ReadFile(name)
		must(t, err)
		bit := rng.Int64N(8 * int64(len(was)))
		what := fmt.Sprintf("%s, bit %d", filepath.Base(name)[:14], bit)
		flip(t, name, bit)
		l := v.look(what)
		hit += v.wantDamage(what, l, v.damaged(name, was)...)
		if n := len(l.failed); n > 0 && n < len(filesOf[name]) {
			partly++
		}
		flip(t, name, bit)
	}
	v.wantWhole()
	if partly == 0 {
		t.Error("no flip left files of the same part readable")
	}
	t.Logf("%d flips in %d files, %d times a file could not be read; %d times another one of the same part could", flips, len(names), hit, partly)
}

// TestManyFlips flips many random bits of the parts of a large repository at a time: check
// finds every piece that was hit.
func TestManyFlips(t *testing.T) {
	v := newFramedVictim(t, scale(60, 2000), scale(2<<20, 105<<20), 5<<20)
	rng := rand.New(rand.NewPCG(9, 10))
	was, stored := map[string][]byte{}, 0
	parts := v.glob("parts/*/*")
	for _, name := range parts {
		b, err := os.ReadFile(name)
		must(t, err)
		was[name] = b
		stored += len(b)
	}
	rounds, hit, hitPieces := scale(8, 100), 0, 0
	flips := scale(100, 200) // a round
	for round := range rounds {
		what := fmt.Sprintf("round %d", round)
		hits := map[string]map[int64]bool{}
		for range flips {
			name := parts[rng.IntN(len(parts))]
			bit := rng.Int64N(8 * int64(len(was[name])))
			if hits[name] == nil {
				hits[name] = map[int64]bool{}
			}
			if !hits[name][bit] {
				hits[name][bit] = true
				flip(t, name, bit)
			}
		}
		var list []piece
		for name := range hits {
			list = append(list, v.damaged(name, was[name])...)
		}
		hitPieces += len(list)
		hit += v.wantDamage(what, v.look(what), list...)
		for name, bits := range hits {
			for bit := range bits {
				flip(t, name, bit)
			}
		}
	}
	v.wantWhole()
	t.Logf("%d flips in %d pieces of %d parts of %d MB, %d times a file could not be read", rounds*flips, hitPieces, len(parts), stored>>20, hit)
}

// replace gives a file other bytes, or takes it away where those are nil, and
// returns how to mend that.
func replace(t *testing.T, name string, content []byte) (mend func()) {
	t.Helper()
	old, err := os.ReadFile(name)
	must(t, err)
	put := func(b []byte) {
		must(t, os.RemoveAll(name))
		if b != nil {
			must(t, os.WriteFile(name, b, 0o400))
		}
	}
	put(content)
	return func() { put(old) }
}

// TestTruncation cuts a small part, and every record, at every byte.
func TestTruncation(t *testing.T) {
	v := newVictim(t, 6, 600)
	parts := v.glob("parts/*/*")
	slices.SortFunc(parts, func(a, b string) int { return int(fileSize(t, a) - fileSize(t, b)) })
	cuts := 0
	for _, name := range append(parts[:1], v.glob("log/*")...) {
		whole, err := os.ReadFile(name)
		must(t, err)
		stride := 5
		if soak() || strings.Contains(name, "/parts/") {
			stride = 1
		}
		for n := 0; n < len(whole); n += stride {
			mend := replace(t, name, whole[:n])
			what := fmt.Sprintf("%s cut to %d bytes", filepath.Base(name)[:14], n)
			v.wantDamage(what, v.look(what), v.damaged(name, whole)...)
			mend()
			cuts++
		}
	}
	v.wantWhole()
	t.Logf("%d cuts", cuts)
}

// frames returns where the frames of a part begin, and at last the tail, as its
// seek table says (docs/FORMAT.md, 2.3).
func frames(part []byte) []int {
	u32 := func(at int) int {
		return int(part[at]) | int(part[at+1])<<8 | int(part[at+2])<<16 | int(part[at+3])<<24
	}
	entries := u32(len(part) - 9)
	table := len(part) - 9 - 8*entries
	starts := []int{0}
	for i := range entries - 1 { // the last one is the frame of the digests
		starts = append(starts, starts[i]+u32(table+8*i))
	}
	return starts
}

// attack is what is done to files of a repository.
type attack struct {
	kind  string
	files map[string][]byte // their new bytes; nil for one that is removed
}

// attacksOnPart returns an attack of each kind on a part. Those that move frames need two of data.
func attacksOnPart(name string, part []byte) []attack {
	zeroed := bytes.Clone(part)
	clear(zeroed[len(part)/3 : min(len(part)/3+4096, len(part))])
	on := func(kind string, pieces ...[]byte) attack {
		return attack{kind, map[string][]byte{name: slices.Concat(pieces...)}}
	}
	list := []attack{on("4 KiB zeroed", zeroed), {"a part deleted", map[string][]byte{name: nil}}}
	at := frames(part)
	if len(at) < 4 {
		return list
	}
	end := at[len(at)-2] // of the frames of data
	first, second, last, rest := part[:at[1]], part[at[1]:at[2]], part[at[2]:end], part[end:]
	data := part[:end]
	return append(list,
		on("a frame dropped", first, last, rest),
		on("a frame doubled", first, first, second, last, rest),
		on("frames reordered", second, first, last, rest),
		on("a frame dropped, zeros behind the others", first, last, make([]byte, len(second)), rest),
		on("a frame doubled over the next", append(slices.Concat(first, first), data[min(2*len(first), end):]...)[:end], rest))
}

// frameAttacks is how many attacks on frames a part of several allows.
const frameAttacks = 5

// try attacks, looks, and mends. wantDamage judges what is seen.
func (v *victim) try(a attack) look {
	v.t.Helper()
	mend, damaged := v.attack(a)
	l := v.look(a.kind)
	v.wantDamage(a.kind, l, damaged...)
	mend()
	return l
}

// attack returns how to undo it, and what it damaged.
func (v *victim) attack(a attack) (mend func(), damaged []piece) {
	v.t.Helper()
	var mends []func()
	for name, content := range a.files {
		was, err := os.ReadFile(name)
		must(v.t, err)
		mends = append(mends, replace(v.t, name, content))
		damaged = append(damaged, v.damaged(name, was)...)
	}
	return func() {
		for _, mend := range mends {
			mend()
		}
	}, damaged
}

// TestMisplaced moves, doubles, swaps and removes whole pieces: 4 KiB of zeros,
// frames, parts, records.
func TestMisplaced(t *testing.T) {
	v := newFramedVictim(t, 60, 3<<20, 5<<20)
	parts, records := v.glob("parts/*/*"), v.glob("log/*")
	if len(parts) < 3 || len(records) != 4 {
		t.Fatalf("%d parts, %d records", len(parts), len(records))
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		must(t, err)
		return b
	}
	filesOf := v.filesOf(parts)
	tried, partly := map[string]int{}, map[string]int{}
	framed := 0
	for _, name := range parts {
		list := attacksOnPart(name, read(name))
		if len(list) > 2 {
			framed++
		}
		for _, a := range list {
			l := v.try(a)
			tried[a.kind]++
			if len(l.failed) == 0 {
				t.Errorf("%s in %s: every file can be read", a.kind, filepath.Base(name))
			}
			for f := range l.failed {
				if !filesOf[name][f] {
					t.Errorf("%s in %s: %v cannot be read, which has nothing in there", a.kind, filepath.Base(name), f)
				}
			}
			if len(l.failed) < len(filesOf[name]) {
				partly[a.kind]++
			}
		}
	}
	v.try(attack{"two parts swapped", map[string][]byte{parts[0]: read(parts[1]), parts[1]: read(parts[0])}})
	for i, name := range records {
		v.try(attack{"a record removed", map[string][]byte{name: nil}})
		if i > 0 {
			v.try(attack{"a record replaced by the one before", map[string][]byte{name: read(records[i-1])}})
		}
	}
	v.wantWhole()
	if framed < 2 || len(tried) != 2+frameAttacks {
		t.Errorf("%d parts of several frames; tried: %v", framed, tried)
	}
	for _, kind := range []string{"4 KiB zeroed", "frames reordered", "a frame dropped, zeros behind the others", "a frame doubled over the next"} {
		if partly[kind] == 0 {
			t.Errorf("%s: other files of the part were never readable", kind)
		}
	}
	t.Logf("%d parts, %d of them of several frames; attacks: %v; other files of the part stayed readable: %v", len(parts), framed, tried, partly)

	// The last two records, and the index with them, as a copy from before has them: all of
	// that is a whole repository. Only with the newer index the loss shows.
	l := v.try(attack{"the end of the log lost", map[string][]byte{records[2]: nil, records[3]: nil}})
	if len(l.gone) != 2 || l.result.Generations != 2 {
		t.Errorf("the end of the log lost: %d generations gone, %d there", len(l.gone), l.result.Generations)
	}
	v.wantWhole()
}

// TestRecordOfAnotherPast replaces a record by one of the same number from a
// copy of the repository that went on differently.
func TestRecordOfAnotherPast(t *testing.T) {
	v := newVictim(t, 10, 5000)
	other := filepath.Join(filepath.Dir(v.dir), "other")
	shell(t, `cp -a "$1" "$2"; rm -r "$2"/log/000000000003* "$2"/log/000000000004* "$2"/index`, v.dir, other)
	src := filepath.Join(filepath.Dir(v.dir), "src")
	for range 2 {
		run(t, mkbackup, "create", "-q", other, "--root", src, "/")
	}
	for _, n := range []int{3, 4} {
		name := fmt.Sprintf("log/%012d.jsonl.zst", n)
		b, err := os.ReadFile(filepath.Join(other, name))
		must(t, err)
		mend := replace(t, filepath.Join(v.dir, name), b)
		l := v.look(name)
		if !l.result.Damaged() {
			t.Errorf("%s of another past: check finds nothing: %+v %v", name, l.result, l.checked)
		}
		mend()
	}
	v.wantWhole()
}

// indexDigest opens the index as commands do, which may replace it, and returns a
// digest of what it answers.
func indexDigest(t *testing.T, dir string, rebuild bool) archive.Hash {
	t.Helper()
	r, err := archive.Open(dir)
	must(t, err)
	defer r.Close()
	open := index.Open
	if rebuild {
		open = index.Rebuild
	}
	db, err := open(r, index.Options{Temporary: rebuild})
	must(t, err)
	defer db.Close()
	digest, err := db.Digest()
	must(t, err)
	return digest
}

// schemaOf returns the schema that a seal claims, 0 where the file is no seal, or
// cannot be read.
func schemaOf(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	var seal struct{ Schema int }
	if filepath.Base(name) != "seal.json" || json.Unmarshal(b, &seal) != nil {
		return 0
	}
	return seal.Schema
}

// TestIndexDamage flips, truncates and removes files of the index, and gives the
// repository other indexes: check says so, and commands get the same answers as
// from a fresh one.
func TestIndexDamage(t *testing.T) {
	v := newVictim(t, 60, 20_000)
	want := indexDigest(t, v.dir, true)
	keep := filepath.Join(filepath.Dir(v.dir), "index")
	shell(t, `cp -a "$1"/index "$2"`, v.dir, keep)
	restore := func() { shell(t, `rm -rf "$1"/index; cp -a "$2" "$1"/index`, v.dir, keep) }
	try := func(what string, damaged bool) {
		t.Helper()
		r, err := archive.Open(v.dir)
		must(t, err)
		result, err := backup.Check(context.Background(), r, backup.CheckOptions{})
		must(t, errors.Join(err, r.Close()))
		if result.Damaged() != damaged {
			t.Errorf("%s: check: %+v", what, result)
		}
		if indexDigest(t, v.dir, false) != want {
			t.Errorf("%s: other answers than those of a fresh index", what)
		}
	}
	try("nothing", false)
	rng := rand.New(rand.NewPCG(3, 4))
	flips := 500
	if soak() {
		flips = 2000
	}
	files := v.glob("index/*/*")
	for range flips {
		name := files[rng.IntN(len(files))]
		bit := rng.Int64N(8 * fileSize(t, name))
		before := schemaOf(t, name)
		flip(t, name, bit)
		// An index of another version of the program is no damage.
		after := schemaOf(t, name)
		try(fmt.Sprintf("%s, bit %d", name, bit), after == 0 || after == before)
		restore()
	}
	for _, name := range files {
		for _, size := range []int64{0, fileSize(t, name) / 2, fileSize(t, name) - 1} {
			must(t, os.Truncate(name, size))
			try(fmt.Sprintf("%s cut to %d bytes", name, size), true)
			restore()
		}
		must(t, os.Remove(name))
		try(name+" removed", true)
		restore()
	}
	write(t, filepath.Join(v.dir, "index/000000000004/000099.sst"), "more")
	try("one file more", true)
	restore()
	must(t, os.RemoveAll(filepath.Join(v.dir, "index/000000000004")))
	try("only an older index", false)
	restore()
	must(t, os.RemoveAll(filepath.Join(v.dir, "index")))
	try("no index", false)
	restore()
	shell(t, `mv "$1"/index/000000000003 "$1"/index/x; mv "$1"/index/000000000004 "$1"/index/000000000003; mv "$1"/index/x "$1"/index/000000000004`, v.dir)
	try("two indexes swapped", true)
	restore()
	foreign := newVictim(t, 60, 20_000)
	shell(t, `rm -r "$1"/index; cp -a "$2"/index "$1"/index`, v.dir, foreign.dir)
	try("the index of another repository", true)
	restore()
	try("restored", false)
}

// TestDamageInTheMount lets the real program serve damage of each kind: what check
// names gives EIO, everything else the right bytes.
func TestDamageInTheMount(t *testing.T) {
	v := newFramedVictim(t, 60, 3<<20, 5<<20)
	r := &repo{t: t, dir: v.dir}
	names := v.generationNames(r)
	parts, records := v.glob("parts/*/*"), v.glob("log/*")
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		must(t, err)
		return b
	}
	attacks := []attack{
		{"two parts swapped", map[string][]byte{parts[0]: read(parts[1]), parts[1]: read(parts[0])}},
		{"a record removed", map[string][]byte{records[1]: nil}},
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		name := parts[rng.IntN(len(parts))]
		part := read(name)
		bit := rng.IntN(8 * len(part))
		part[bit/8] ^= 1 << (bit % 8)
		attacks = append(attacks, attack{fmt.Sprintf("%s, bit %d", filepath.Base(name)[:14], bit), map[string][]byte{name: part}})
	}
	for _, name := range parts {
		if list := attacksOnPart(name, read(name)); len(list) == 2+frameAttacks {
			attacks = append(attacks, list...)
			break
		}
	}
	if len(attacks) != 2+8+2+frameAttacks {
		t.Fatalf("%d attacks", len(attacks))
	}
	for _, a := range attacks {
		mend, damaged := v.attack(a)
		l := v.look(a.kind)
		v.wantDamage(a.kind, l, damaged...)
		broken := v.inMount(a.kind, r.mount(), names, l)
		if !maps.Equal(broken, l.failed) {
			t.Errorf("%s: %d files give errors in the mount, %d in process\n%v\n%v", a.kind, len(broken), len(l.failed), broken, l.failed)
		}
		if len(broken) == 0 && a.kind != "a record removed" {
			t.Errorf("%s: nothing broke", a.kind)
		}
		if named := v.namedByCheck(r, names); !maps.Equal(named, broken) {
			t.Errorf("%s: check names %d files, %d give errors in the mount\n%v\n%v", a.kind, len(named), len(broken), named, broken)
		}
		t.Logf("%s: %d of %d files", a.kind, len(broken), len(v.want))
		mend()
	}
	v.wantWhole()
}

// generationNames returns where each generation lies in a mount, by its number.
func (v *victim) generationNames(r *repo) map[uint64]string {
	v.t.Helper()
	var list []struct {
		Number             uint64
		Source, Generation string
	}
	must(v.t, json.Unmarshal([]byte(run(v.t, mkbackup, "list", r.dir, "--json")), &list))
	names := map[uint64]string{}
	for _, g := range list {
		names[g.Number] = filepath.Join(g.Source, g.Generation)
	}
	if len(names) != v.gens {
		v.t.Fatalf("generations %v", names)
	}
	return names
}

// inMount reads all files in a mount, which shows the generations that are there for l, unmounts, and
// returns those that give EIO. Any other error, and wrong bytes, fail the test.
func (v *victim) inMount(what string, m *fuseMount, names map[uint64]string, l look) map[fileAt]bool {
	v.t.Helper()
	defer m.stop()
	broken := map[fileAt]bool{}
	for f, want := range v.want {
		got, err := os.ReadFile(m.path(names[f.number], f.path))
		switch {
		case l.gone[f.number]:
			wantErrno(v.t, fmt.Sprintf("%s: %v of a lost generation", what, f), unix.ENOENT, err)
		case err != nil:
			wantErrno(v.t, fmt.Sprintf("%s: %v", what, f), unix.EIO, err)
			broken[f] = true
		case string(got) != want:
			v.t.Errorf("%s: %v in the mount: wrong bytes and no error", what, f)
		}
	}
	return broken
}

// namedByCheck returns the files that the real check names as hit. It must find damage.
func (v *victim) namedByCheck(r *repo, names map[uint64]string) map[fileAt]bool {
	v.t.Helper()
	numbers := map[string]uint64{}
	for number, name := range names {
		numbers[name] = number
	}
	named := map[fileAt]bool{}
	c, _ := r.checkJSON(4, "--read-data")
	for _, part := range c.DamagedParts {
		for _, f := range part.Files {
			for _, g := range f.Generations {
				named[fileAt{numbers[filepath.Join(f.Source, g)], strings.TrimPrefix(f.Path, "/")}] = true
			}
		}
	}
	return named
}
