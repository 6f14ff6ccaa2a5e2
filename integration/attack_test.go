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
	"path/filepath"
	"slices"
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

// newVictim makes a repository on a tmpfs, of three generations of a source and
// one of another. size is about how many bytes of files there are.
func newVictim(t *testing.T, files, size int) *victim {
	t.Helper()
	base := tmpfs(t, 512<<20)
	src := mkdir(t, base, "src")
	r := &repo{t: t, dir: filepath.Join(base, "repo")}
	run(t, mkbackup, "init", r.dir, "--part-size", "64KiB")
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
	reader := archive.NewReader(r.Store(), 1<<20)
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

// wantDamage fails the test unless the check found damage and named exactly the
// files that cannot be read. It returns how many those are.
func (v *victim) wantDamage(what string, l look) int {
	v.t.Helper()
	if l.checked != nil {
		v.t.Errorf("%s: check: %v", what, l.checked)
		return 0
	}
	if !l.result.Damaged() || len(l.said) == 0 {
		v.t.Errorf("%s: check finds nothing: %+v", what, l.result)
	}
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
		for bit := int64(0); bit < 8*fileSize(t, name); bit += int64(stride) {
			what := fmt.Sprintf("%s, bit %d", filepath.Base(name)[:14], bit)
			flip(t, name, bit)
			hit += v.wantDamage(what, v.look(what))
			flip(t, name, bit)
			flips++
		}
	}
	v.wantWhole()
	// Nothing vouches for the time and the part size in repo.json, and no byte
	// that is served depends on them.
	name := filepath.Join(v.dir, "repo.json")
	for bit := range 8 * fileSize(t, name) {
		flip(t, name, bit)
		v.look(fmt.Sprintf("repo.json, bit %d", bit))
		flip(t, name, bit)
		flips++
	}
	v.wantWhole()
	t.Logf("%d flips, %d times a file could not be read", flips, hit)
}

// TestRandomFlips flips random bits of a larger repository, one at a time.
func TestRandomFlips(t *testing.T) {
	v := newVictim(t, 60, 200_000)
	rng := rand.New(rand.NewPCG(1, 2))
	names := append(v.glob("parts/*/*"), v.glob("log/*")...)
	flips, hit := 2000, 0
	if soak() {
		flips = 20_000
	}
	for range flips {
		name := names[rng.IntN(len(names))]
		bit := rng.Int64N(8 * fileSize(t, name))
		what := fmt.Sprintf("%s, bit %d", filepath.Base(name)[:14], bit)
		flip(t, name, bit)
		hit += v.wantDamage(what, v.look(what))
		flip(t, name, bit)
	}
	v.wantWhole()
	t.Logf("%d flips in %d files, %d times a file could not be read", flips, len(names), hit)
}

// TestManyFlips flips many random bits of the parts of a large repository at a time: check
// finds every part that was hit.
func TestManyFlips(t *testing.T) {
	v := newVictim(t, scale(60, 2000), scale(2<<20, 105<<20))
	rng := rand.New(rand.NewPCG(9, 10))
	parts := v.glob("parts/*/*")
	stored := int64(0)
	for _, name := range parts {
		stored += fileSize(t, name)
	}
	rounds, hit := scale(4, 100), 0
	const flips = 200 // a round
	for round := range rounds {
		what := fmt.Sprintf("round %d", round)
		var bits []func()
		damaged := map[string]int{}
		for range flips {
			name := parts[rng.IntN(len(parts))]
			bit := rng.Int64N(8 * fileSize(t, name))
			flip(t, name, bit)
			bits = append(bits, func() { flip(t, name, bit) })
			damaged[name]++
		}
		l := v.look(what)
		hit += v.wantDamage(what, l)
		if len(l.result.DamagedParts) != len(damaged) {
			t.Errorf("%s: %d parts were hit, check names %d", what, len(damaged), len(l.result.DamagedParts))
		}
		for _, mend := range bits {
			mend()
		}
	}
	v.wantWhole()
	t.Logf("%d flips in %d parts of %d MB, %d times a file could not be read", rounds*flips, len(parts), stored>>20, hit)
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
			v.wantDamage(what, v.look(what))
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

// TestMisplaced moves, doubles, swaps and removes whole pieces: 4 KiB of zeros,
// frames, parts, records.
func TestMisplaced(t *testing.T) {
	v := newVictim(t, 60, 3<<20)
	parts, records := v.glob("parts/*/*"), v.glob("log/*")
	if len(parts) < 5 || len(records) != 4 {
		t.Fatalf("%d parts, %d records", len(parts), len(records))
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		must(t, err)
		return b
	}
	try := func(what string, mends ...func()) int {
		t.Helper()
		n := v.wantDamage(what, v.look(what))
		for _, mend := range mends {
			mend()
		}
		return n
	}
	for _, name := range parts {
		part := read(name)
		zeroed := bytes.Clone(part)
		clear(zeroed[len(part)/3 : min(len(part)/3+4096, len(part))])
		if n := try("4 KiB zeroed", replace(t, name, zeroed)); n == 0 {
			t.Errorf("4 KiB of zeros in %s hit no file", filepath.Base(name))
		}
		try("a part deleted", replace(t, name, nil))
		at := frames(part)
		if len(at) < 4 {
			continue
		}
		first, second, rest := part[:at[1]], part[at[1]:at[2]], part[at[2]:]
		try("a frame dropped", replace(t, name, slices.Concat(first, rest)))
		try("a frame doubled", replace(t, name, slices.Concat(first, first, second, rest)))
		try("frames reordered", replace(t, name, slices.Concat(second, first, rest)))
	}
	try("two parts swapped", replace(t, parts[0], read(parts[1])), replace(t, parts[1], read(parts[0])))
	for i, name := range records {
		try("a record removed", replace(t, name, nil))
		if i > 0 {
			try("a record replaced by the one before", replace(t, name, read(records[i-1])))
		}
	}
	v.wantWhole()

	// The last two records, and the index with them, as a copy from before has them: all of
	// that is a whole repository. Only with the newer index the loss shows.
	mends := []func(){replace(t, records[2], nil), replace(t, records[3], nil)}
	l := v.look("the end of the log lost")
	v.wantDamage("the end of the log lost", l)
	if len(l.gone) != 2 || l.result.Generations != 2 {
		t.Errorf("the end of the log lost: %d generations gone, %d there", len(l.gone), l.result.Generations)
	}
	for _, mend := range mends {
		mend()
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

// TestDamageInTheMount lets the real program serve damaged parts: what check
// names gives EIO, everything else the right bytes.
func TestDamageInTheMount(t *testing.T) {
	v := newVictim(t, 60, 600_000)
	r := &repo{t: t, dir: v.dir}
	rng := rand.New(rand.NewPCG(5, 6))
	parts := v.glob("parts/*/*")
	for range 8 {
		name := parts[rng.IntN(len(parts))]
		bit := rng.Int64N(8 * fileSize(t, name))
		flip(t, name, bit)
		res := r.mkbackup("check", "--read-data", "-v")
		if res.code != 4 || !strings.HasPrefix(res.stdout, "DAMAGED: 1 part") {
			t.Errorf("check --read-data: exit code %d: %s%s", res.code, res.stdout, res.stderr)
		}
		l := v.look("mount")
		m := r.mount()
		broken := map[fileAt]bool{}
		for n, dir := range map[uint64]string{1: r.generations()[0], 2: r.generations()[1], 4: "latest"} {
			for f, want := range v.want {
				if f.number != n {
					continue
				}
				got, err := os.ReadFile(m.path(dir, f.path))
				switch {
				case err != nil:
					wantErrno(t, f.path, unix.EIO, err)
					broken[f] = true
				case string(got) != want:
					t.Errorf("%s in the mount: wrong bytes and no error", f.path)
				}
				if l.failed[f] != broken[f] {
					t.Errorf("generation %d, %s: error in the mount %v, in process %v", n, f.path, broken[f], l.failed[f])
				}
				if l.failed[f] && !strings.Contains(res.stderr, "  /"+f.path+" (") {
					t.Errorf("check does not name %s:\n%s", f.path, res.stderr)
				}
			}
		}
		if len(broken) == 0 {
			t.Log("the bit hit no file of the unnamed source")
		}
		m.stop()
		flip(t, name, bit)
	}
	v.wantWhole()
}
