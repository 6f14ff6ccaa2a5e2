package fs_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/backupfs/backupfs/fs"
)

func TestMetricsOfReading(t *testing.T) {
	r := newRepo(t)
	paths := manyFiles(r, 3, 60)
	mnt, _, m := mounted(t, r, fs.Options{})
	if before := m.Metrics(); before.Reads != 0 || before.Pushes != 0 || before.Frames.Decoded != 0 {
		t.Errorf("%+v before anybody read", before)
	}
	for i := range 3 { // the kernel is given what it knows of
		if _, err := os.ReadDir(fmt.Sprintf("%s/latest/d%03d", mnt, i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range paths {
		wantContent(t, mnt+"/latest/"+path, contentOf(path))
	}
	got := m.Metrics()
	if got.Reads < 1 || got.ReadRaw < 5000 || got.ReadRaw > 5000*got.Reads {
		t.Errorf("%d READs of %d bytes", got.Reads, got.ReadRaw)
	}
	eventually(t, "pushes are not counted, or other bytes than theirs", func() bool { // it may be pushing still
		got := m.Metrics()
		return got.Pushes >= 1 && got.PushedRaw == 5000*got.Pushes
	})
	// Frames have 16 KiB in these repositories: 55 of them hold the files.
	if f := got.Frames; f.Hits < 1 || f.Misses < 1 || f.Decoded < 50 || f.DecodedRaw < 180*5000 || f.Failed != 0 || f.Cached < f.DecodedRaw {
		t.Errorf("%+v", f)
	}
	if got.Failures != 0 || got.RefreshFailures != 0 {
		t.Errorf("%+v", got)
	}
}

func TestMetricsOfGenerations(t *testing.T) {
	r := newRepo(t)
	commit := func(source, when string) {
		d := r.begin(source)
		d.file("f", when)
		d.commit(when)
	}
	commit("", "2026-11-21T03:00:00Z")
	commit("web1", "2026-11-21T04:00:00Z")
	commit("", "2026-11-22T03:00:00Z")
	source := func(name string, n int, newest string) fs.SourceMetrics {
		when, err := time.Parse(time.RFC3339, newest)
		if err != nil {
			t.Fatal(err)
		}
		return fs.SourceMetrics{Source: name, Generations: n, Newest: when.UTC()}
	}
	shows := func(m *fs.Mount, want ...fs.SourceMetrics) bool {
		got := m.Metrics().Sources
		slices.SortFunc(got, func(a, b fs.SourceMetrics) int { return cmp.Compare(a.Source, b.Source) })
		return slices.EqualFunc(got, want, func(a, b fs.SourceMetrics) bool {
			return a.Source == b.Source && a.Generations == b.Generations && a.Newest.Equal(b.Newest)
		})
	}
	unnamed, web1 := source("", 2, "2026-11-22T03:00:00Z"), source("web1", 1, "2026-11-21T04:00:00Z")
	_, _, all := mounted(t, r, fs.Options{})
	if !shows(all, unnamed, web1) {
		t.Errorf("%+v", all.Metrics().Sources)
	}
	_, _, one := mounted(t, r, fs.Options{Source: "web1"})
	if !shows(one, web1) {
		t.Errorf("of one source: %+v", one.Metrics().Sources)
	}
	_, _, pinned := mounted(t, r, fs.Options{Generation: "latest~1"})
	if !shows(pinned, source("", 1, "2026-11-21T03:00:00Z")) {
		t.Errorf("of one generation: %+v", pinned.Metrics().Sources)
	}
	commit("web1", "2026-11-23T04:00:00Z")
	later := source("web1", 2, "2026-11-23T04:00:00Z")
	eventually(t, "a new generation is not counted", func() bool { return shows(all, unnamed, later) && shows(one, later) })
}
