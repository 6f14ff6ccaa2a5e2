package fs_test

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
)

// repo is a repository that a test fills by hand.
type repo struct {
	*archive.Repository
	t        testing.TB
	last     uint64 // newest record
	previous archive.Digest
	heads    map[string]uint64 // newest generation of each source
	known    map[archive.Hash]bool
}

func newRepo(t testing.TB) *repo {
	t.Helper()
	return newRepoAt(t, filepath.Join(t.TempDir(), "repo"))
}

func newRepoAt(t testing.TB, dir string) *repo {
	t.Helper()
	r, err := archive.Init(dir, archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return &repo{Repository: r, t: t, heads: map[string]uint64{}, known: map[archive.Hash]bool{}}
}

// draft is a generation being made.
type draft struct {
	*repo
	source  string
	record  *archive.RecordDraft
	packer  *archive.Packer
	changes []archive.Line
}

// begin starts a generation: changes against the source's newest one.
func (r *repo) begin(source string) *draft {
	r.t.Helper()
	record, err := r.NewRecord()
	if err != nil {
		r.t.Fatal(err)
	}
	d := &draft{repo: r, source: source, record: record}
	d.packer = archive.NewPacker(r.Store(), archive.PackerOptions{FrameRaw: 16 << 10}, record.AddPart)
	if r.heads[source] == 0 {
		d.dir(".")
	}
	return d
}

func (d *draft) add(e archive.Entry, edit ...func(*archive.Entry)) {
	e.Attr.Mtime = archive.Timespec{Sec: 1_700_000_000, Nsec: 123_456_789}
	e.Attr.Ctime = archive.Timespec{Sec: 1_700_000_001, Nsec: 1}
	e.Attr.Nlink = max(e.Attr.Nlink, 1)
	for _, f := range edit {
		f(&e)
	}
	d.changes = append(d.changes, archive.Line{Entry: &e})
}

func (d *draft) dir(path string, edit ...func(*archive.Entry)) {
	d.add(archive.Entry{Path: path, Attr: archive.Attr{Type: archive.TypeDir, Mode: 0o755, Nlink: 2, Size: 4096}}, edit...)
}

func (d *draft) file(path, data string, edit ...func(*archive.Entry)) {
	d.t.Helper()
	e := archive.Entry{Path: path, Attr: archive.Attr{Type: archive.TypeFile, Mode: 0o644, Size: int64(len(data))}}
	if data != "" {
		e.Data = []archive.Extent{{Len: int64(len(data)), Hash: d.store(path, data)}}
	}
	d.add(e, edit...)
}

func (d *draft) node(path string, a archive.Attr, edit ...func(*archive.Entry)) {
	d.add(archive.Entry{Path: path, Attr: a}, edit...)
}

// store stores a content unless it is known.
func (d *draft) store(path, data string) archive.Hash {
	d.t.Helper()
	h := archive.HashOf([]byte(data))
	if !d.known[h] {
		if err := d.packer.Add(archive.Member{Name: path, Mode: 0o644}, h, []byte(data)); err != nil {
			d.t.Fatal(err)
		}
		d.known[h] = true
	}
	return h
}

func (d *draft) gone(path string) { d.changes = append(d.changes, archive.Line{Gone: path}) }

// commit commits the generation, which is of the time at, and returns its name.
func (d *draft) commit(at string) string {
	d.t.Helper()
	if err := d.packer.Close(); err != nil {
		d.t.Fatal(err)
	}
	slices.SortStableFunc(d.changes, func(a, b archive.Line) int { return cmp.Compare(sortKey(a), sortKey(b)) })
	for _, l := range d.changes {
		if err := d.record.Add(l); err != nil {
			d.t.Fatal(err)
		}
	}
	when, err := time.Parse(time.RFC3339, at)
	if err != nil {
		d.t.Fatal(err)
	}
	name := when.Format(archive.GenerationTimeFormat)
	d.append(d.record, archive.Header{Kind: archive.KindGeneration, Time: when, Source: d.source, Name: name, Base: d.heads[d.source]})
	d.heads[d.source] = d.last
	return name
}

// sortKey sorts paths by component, the root first.
func sortKey(l archive.Line) string {
	path := l.Gone
	if l.Entry != nil {
		path = l.Entry.Path
	}
	if path == "." {
		return ""
	}
	return strings.ReplaceAll(path, "/", "\x00")
}

// append commits the next record.
func (r *repo) append(d *archive.RecordDraft, h archive.Header) {
	r.t.Helper()
	defer d.Discard()
	h.Number, h.Previous, h.Program = r.last+1, r.previous, "test"
	digest, _, err := d.Commit(h)
	if err != nil {
		r.t.Fatal(err)
	}
	r.last, r.previous = h.Number, digest
}

// forget drops generations.
func (r *repo) forget(numbers ...uint64) {
	r.t.Helper()
	r.forgetAt(time.Now(), numbers...)
}

func (r *repo) forgetAt(at time.Time, numbers ...uint64) {
	r.t.Helper()
	record, err := r.NewRecord()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range numbers {
		if err := record.Add(archive.Line{Forget: n}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.append(record, archive.Header{Kind: archive.KindForget, Time: at})
}
