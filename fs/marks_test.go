package fs

import (
	"fmt"
	"testing"
)

func TestMarksNearest(t *testing.T) {
	m := newMarks()
	for _, passed := range []int64{64, 32, 100} {
		m.add(7, mark{passed: passed, name: fmt.Sprint(passed)})
	}
	for behind, want := range map[int64]string{0: "", 31: "", 32: "32", 63: "32", 64: "64", 99: "64", 100: "100", 1e6: "100"} {
		if got := m.nearest(7, behind); got.name != want {
			t.Errorf("nearest(%d) = %q, want %q", behind, got.name, want)
		}
	}
	if got := m.nearest(8, 100); got != (mark{}) {
		t.Errorf("another directory has the mark %v", got)
	}
	m.add(7, mark{passed: 100, name: "100", end: true})
	if !m.nearest(7, 100).end {
		t.Error("the end is not remembered")
	}
}

func TestMarksAreBounded(t *testing.T) {
	m := newMarks()
	for i := int64(1); i <= 10*marksPerDir; i++ {
		m.add(1, mark{passed: i * marksEvery, name: fmt.Sprint(i)})
	}
	if n := len(m.dirs[1].Value.(*dirMarks).sorted); n > marksPerDir || n < marksPerDir/4 {
		t.Errorf("%d marks in one directory", n)
	}
	const last = 10 * marksPerDir * marksEvery
	if got := m.nearest(1, last/2); last/2-got.passed > last/(marksPerDir/4) {
		t.Errorf("the nearest mark to %d is at %d", last/2, got.passed)
	}
	for node := uint64(2); node < 2*marksInAll; node++ {
		m.add(node, mark{passed: 1, name: "x", end: true})
	}
	if m.total > marksInAll || len(m.dirs) > marksInAll || m.recent.Len() != len(m.dirs) {
		t.Errorf("%d marks of %d directories", m.total, len(m.dirs))
	}
	if m.nearest(2*marksInAll-1, 5).name == "" {
		t.Error("the most recent mark is lost")
	}
	if m.nearest(1, last).name != "" {
		t.Error("the least recent marks are kept")
	}
}
