package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/backupfs/backupfs/integration/internal/programs"
	"github.com/backupfs/backupfs/internal/measure"
	"github.com/backupfs/backupfs/internal/sandbox"
)

// bench measures one tree. Everything lies on a tmpfs, the tree on an ext4 in it.
type bench struct {
	options
	product programs.Programs
	dir     string
	files   int
	table   measure.Table
	cost    cost
}

func (b *bench) ext4() string       { return filepath.Join(b.dir, "ext4") }
func (b *bench) src() string        { return filepath.Join(b.ext4(), "src") }
func (b *bench) repository() string { return filepath.Join(b.dir, "repository") }

// file returns the name of a file, relative to the tree.
func (b *bench) file(n int) string {
	dir := n / filesPerDir
	return fmt.Sprintf("group-%03d/directory-%05d/file-%02d", dir/200, dir, n%filesPerDir)
}

// run measures the tree by one generation after another.
func (b *bench) run(steps ...func() error) (err error) {
	b.cost.at = b.files
	if err := os.Mkdir(b.dir, 0o755); err != nil {
		return err
	}
	if err := sandbox.Ext4(b.ext4(), 16<<30, b.files*5/4+10_000); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, programs.Unmount(b.ext4(), 0), os.RemoveAll(b.dir)) }()
	if err := b.makeFiles(); err != nil {
		return err
	}
	if _, _, err := b.product.Mkbackup("init", b.repository()); err != nil {
		return err
	}
	for _, step := range append([]func() error{b.first}, steps...) {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// size measures what grows with the number of files.
func (b *bench) size() error {
	return b.run(b.unchanged, b.ready, b.mounted, b.changed, b.check)
}

func (b *bench) check() error {
	cost, _, err := b.product.Mkbackup("check", b.repository())
	if err != nil {
		return err
	}
	b.limit("check of the structure", cost.Of(), limitCheck.Seconds())
	return nil
}

func (b *bench) makeFiles() error {
	for n := range b.files {
		path := filepath.Join(b.src(), b.file(n))
		if n%filesPerDir == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "file %d of directory %d\n", n%filesPerDir, n/filesPerDir), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// limit adds a figure, with its limit if this tree is one with limits.
func (b *bench) limit(what string, got measure.Figure, limit float64) {
	if b.files == limitsAt {
		b.table.Limit(what, got, limit)
	} else {
		b.table.Note(what, got)
	}
}

// entries is how many entries the tree has: files, their directories, one for each
// 200 of these, and the root.
func (b *bench) entries() int {
	dirs := b.files / filesPerDir
	return b.files + dirs + (dirs+199)/200 + 1
}

// counts are the entries of a generation, directories too, as the summary of
// create has them.
type counts struct{ New, Changed, Unchanged, Gone int }

// create makes a generation, which must hold what is wanted.
func (b *bench) create(want counts) (measure.Cost, error) {
	cost, out, err := b.product.Mkbackup("create", b.repository(), "--json", "--root", b.src(), "/")
	if err != nil {
		return cost, err
	}
	var got counts
	if err := json.Unmarshal(out, &got); err != nil {
		return cost, fmt.Errorf("summary %q: %w", out, err)
	}
	if got != want {
		return cost, fmt.Errorf("a generation with %+v, want %+v", got, want)
	}
	return cost, nil
}

func (b *bench) first() error {
	cost, err := b.create(counts{New: b.entries()})
	if err != nil {
		return err
	}
	b.cost.create = cost.Wall
	b.table.Note("first create", cost.Of())
	b.limit("- its peak memory (VmHWM)", measure.Size(cost.Peak), limitCreate)
	for _, dir := range []string{"parts", "log", "index"} {
		size, err := measure.DiskUse(filepath.Join(b.repository(), dir))
		if err != nil {
			return err
		}
		b.table.Note("- bytes of "+dir, measure.Size(size))
	}
	return nil
}

// find prints how many names it has walked over, with their attributes.
const find = `find "$1/" -type f -printf '%s %p\n' | wc -l`

// walk runs find over all files, which must be there.
func (b *bench) walk(dir string, pids ...int) (measure.Cost, error) {
	cmd := measure.Shell(find, dir)
	var out strings.Builder
	cmd.Stdout = &out
	cost, err := measure.Run(cmd, pids...)
	if err != nil {
		return cost, err
	}
	if got := strings.TrimSpace(out.String()); got != strconv.Itoa(b.files) {
		return cost, fmt.Errorf("find sees %s files in %s, want %d", got, dir, b.files)
	}
	return cost, nil
}

// unchanged compares a create that finds nothing to do with a find that is as warm.
func (b *bench) unchanged() error {
	if _, err := b.walk(b.src()); err != nil { // warm
		return err
	}
	costs, err := measure.Alternate(repeats,
		func() (measure.Cost, error) { return b.walk(b.src()) },
		func() (measure.Cost, error) { return b.create(counts{Unchanged: b.entries()}) })
	if err != nil {
		return err
	}
	b.cost.unchanged = costs[1].Wall
	target := limitUnchanged
	if b.files != limitsAt {
		target = 0
	}
	b.table.Ratio("create, nothing changed", costs[1].Of(), "find -printf, the source", costs[0].Of(), target)
	return nil
}

func (b *bench) mount() (*programs.Mount, error) {
	return b.product.Mount(b.repository(), filepath.Join(b.dir, "mnt"), "--cache-size", fmt.Sprint(b.cacheMiB, "MiB"))
}

// timeMount mounts and unmounts.
func (b *bench) timeMount() (time.Duration, error) {
	var took []time.Duration
	for range repeats {
		m, err := b.mount()
		if err != nil {
			return 0, err
		}
		took = append(took, m.Ready)
		if err := m.Close(); err != nil {
			return 0, err
		}
	}
	return measure.Median(took), nil
}

func closeMount(m *programs.Mount, err *error) { *err = errors.Join(*err, m.Close()) }

func (b *bench) ready() (err error) {
	if b.cost.ready, err = b.timeMount(); err != nil {
		return err
	}
	b.limit("mount ready", measure.Duration(b.cost.ready), limitReady.Seconds())
	return nil
}

func (b *bench) mounted() (err error) {
	m, err := b.mount()
	if err != nil {
		return err
	}
	defer closeMount(m, &err)
	tree := filepath.Join(m.Dir, "latest")
	if b.cost.read, err = b.firstRead(tree); err != nil {
		return err
	}
	b.table.Note("first read of a random file, cold, p50", measure.Duration(b.cost.read))
	if err := measure.DropCaches(); err != nil {
		return err
	}
	cold, err := b.walk(tree, m.PID)
	if err != nil {
		return err
	}
	b.cost.find = cold.Wall
	b.table.Note("find -printf through the mount, cold", cold.Of())
	if err := b.memory(m, "- after it"); err != nil {
		return err
	}
	again, err := b.walk(tree, m.PID)
	if err != nil {
		return err
	}
	b.table.Note("find -printf through the mount, second time", again.Of())
	began := time.Now()
	if err := b.readRandomly(tree); err != nil {
		return err
	}
	b.table.Note(fmt.Sprintf("%d reads of random files", randomReads), measure.Duration(time.Since(began)))
	return b.memory(m, "- after them")
}

// firstRead returns the median of opening and reading files in directories that
// nobody has asked for yet.
func (b *bench) firstRead(tree string) (time.Duration, error) {
	if err := measure.DropCaches(); err != nil {
		return 0, err
	}
	var took []time.Duration
	r := rand.New(rand.NewPCG(7, 8))
	for _, dir := range r.Perm(b.files / filesPerDir)[:min(firstReads, b.files/filesPerDir)] {
		began := time.Now()
		if _, err := os.ReadFile(filepath.Join(tree, b.file(dir*filesPerDir+7))); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	return measure.Median(took), nil
}

// readRandomly reads files here and there, and compares each with what it must hold.
func (b *bench) readRandomly(tree string) error {
	r := rand.New(rand.NewPCG(5, 6))
	for range randomReads {
		n := r.IntN(b.files)
		got, err := os.ReadFile(filepath.Join(tree, b.file(n)))
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("file %d of directory %d\n", n%filesPerDir, n/filesPerDir); string(got) != want {
			return fmt.Errorf("%s holds %q, want %q", b.file(n), got, want)
		}
	}
	return nil
}

func (b *bench) memory(m *programs.Mount, when string) error {
	memory, err := m.Memory()
	if err != nil {
		return err
	}
	b.limit(when+" resident (VmRSS)", measure.Size(memory.Resident), float64(limitMount+b.cacheMiB*mib))
	b.table.Note(when+" of it its own (RssAnon)", measure.Size(memory.Anonymous))
	return nil
}

// changed makes changes all over the tree and backs them up.
func (b *bench) changed() error {
	n := min(changes, b.files/100) // each in a directory of its own
	want := counts{Unchanged: b.entries()}
	for i := range n {
		if err := b.change(i, i*(b.files/n)+i%filesPerDir, &want); err != nil {
			return err
		}
	}
	cost, err := b.create(want)
	if err != nil {
		return err
	}
	record, err := b.newest("log")
	if err != nil {
		return err
	}
	if err := b.setPublished(); err != nil {
		return err
	}
	b.table.Note(fmt.Sprintf("create after %d changes", n), cost.Of())
	b.limit("- its peak memory (VmHWM)", measure.Size(cost.Peak), limitCreate)
	b.limit("- its log record", measure.Size(record.Size()), limitRecord)
	b.limit("- from the log record to its published index", measure.Duration(b.cost.publish), limitPublish.Seconds())
	return nil
}

// setPublished notes how long after the newest log record its index was there.
func (b *bench) setPublished() error {
	record, err := b.newest("log")
	if err != nil {
		return err
	}
	index, err := b.newest("index")
	if err != nil {
		return err
	}
	b.cost.publish = changeTime(index).Sub(changeTime(record))
	return nil
}

// change makes one of the changes to the file n: most contents, some modes,
// deletions and new files. It notes in want what becomes of it.
func (b *bench) change(i, n int, want *counts) error {
	path := filepath.Join(b.src(), b.file(n))
	if i%10 >= 8 { // changes the directory too
		want.Unchanged--
		want.Changed++
	}
	if i%10 == 9 {
		want.New++
		return os.WriteFile(path+"-new", fmt.Append(nil, "new ", i), 0o644)
	}
	want.Unchanged--
	if i%10 == 8 {
		want.Gone++
		return os.Remove(path)
	}
	want.Changed++
	if i%10 == 7 {
		return os.Chmod(path, 0o600)
	}
	return os.WriteFile(path, fmt.Append(nil, "changed ", i), 0o644)
}

// newest returns the last file of a directory of the repository.
func (b *bench) newest(dir string) (os.FileInfo, error) {
	names, err := filepath.Glob(filepath.Join(b.repository(), dir, "*"))
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s of the repository is empty", dir)
	}
	return os.Stat(slices.Max(names))
}

// changeTime returns when a published file got its name: nothing changes it after
// that. The kernel's clock of such times ticks every 4 ms.
func changeTime(info os.FileInfo) time.Time {
	return time.Unix(info.Sys().(*syscall.Stat_t).Ctim.Unix())
}
