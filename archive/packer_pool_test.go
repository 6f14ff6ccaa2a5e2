package archive

import (
	"errors"
	"slices"
	"testing"
)

// Packers that share a pool write the parts that each would write alone, however
// few frames and coders there are.
func TestPackerPool(t *testing.T) {
	noLeaks(t)
	options := PackerOptions{FrameRaw: testFrame, PartStored: 20000, Workers: 1}
	const packers = 7
	shared, alone := newMemStore(), newMemStore()
	pool := NewPackerPool(options, packers)
	var list [2 * packers]*Packer
	for i := range packers {
		list[i] = pool.NewPacker(shared, func(PublishedPart) error { return nil })
		list[packers+i] = NewPacker(alone, options, func(PublishedPart) error { return nil })
	}
	for round := range 10 {
		for i, p := range list {
			x := sampleOf("a", noise(100+testFrame*(round%4), uint64(100*round+i%packers)))
			if err := p.Add(x.m, x.hash(), x.b); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range list {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p.Abort()
	}
	if len(alone.names()) < packers || !slices.Equal(shared.names(), alone.names()) {
		t.Errorf("with a pool %v, alone %v", shared.names(), alone.names())
	}
}

// Nobody waits for the frames of a packer that has failed.
func TestPackerPoolFails(t *testing.T) {
	noLeaks(t)
	boom := errors.New("boom")
	broken, whole := newMemStore(), newMemStore()
	broken.fail = func(string) error { return boom }
	pool := NewPackerPool(PackerOptions{FrameRaw: testFrame, Workers: 1}, 2)
	bad := pool.NewPacker(broken, nil)
	good := pool.NewPacker(whole, func(PublishedPart) error { return nil })
	x := sampleOf("a", noise(testFrame/2, 1))
	for _, p := range []*Packer{bad, good} {
		var err error
		for i := 0; err == nil && i < 1000; i++ {
			err = p.Add(x.m, x.hash(), x.b)
		}
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
	}
	if err := good.Close(); !errors.Is(err, boom) || whole.drafts != 0 || len(whole.objects) != 0 {
		t.Error(err, whole.drafts, whole.names())
	}
	bad.Abort()
}
