package fs

import (
	"testing"

	"github.com/backupfs/backupfs/index"
)

func TestSequences(t *testing.T) {
	var q sequences
	const mib = 1 << 20
	for i, c := range []struct {
		ino    index.Ino
		offset int64
		want   bool
	}{
		{300, 0, true},
		{300, 2 * mib, true}, // one that was overtaken by
		{300, mib, true},     // this one
		{300, 3 * mib, true},
		{300, 60 * mib, false}, // elsewhere
		{300, 61 * mib, true},
		{300, 4 * mib, true}, // and both go on
		{302, 5 * mib, false},
		{300, 20 * mib, false},
		{300, 40 * mib, false},
	} {
		if got := q.goesOn(c.ino, c.offset, mib); got != c.want {
			t.Errorf("READ %d, at %d of %d: %t", i, c.offset, c.ino, got)
		}
	}
	for i := range 2 * maxSequences { // drive out the others
		q.goesOn(index.Ino(1000+2*i), 7*mib, mib)
	}
	if q.goesOn(300, 5*mib, mib) {
		t.Error("a sequence of long ago is remembered")
	}
}
