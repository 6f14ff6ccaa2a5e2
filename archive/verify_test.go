package archive

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// TestVerifyManyParts verifies more parts at a time than there are cores, whole and
// with damaged frames: each is described as if it were read alone, frame by frame.
func TestVerifyManyParts(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	parts := pack(t, s, PackerOptions{FrameRaw: 4096, PartStored: 64 << 10}, samplesOf(slices.Repeat([]int{300, 9000, 700, 30000}, 40)...))
	if len(parts) < 8 {
		t.Fatalf("only %d parts", len(parts))
	}
	r := rand.New(rand.NewPCG(1, 1))
	wrong := make([][]int64, len(parts)) // stored offsets of the damaged frames
	first := make([]int64, len(parts))   // raw offset of the first damaged one
	for i, pp := range parts {
		first[i] = pp.Part.Raw
		for _, f := range tailOf(t, s, pp.Part) {
			if i%2 == 1 && r.IntN(3) == 0 {
				s.objects[pp.Part.StoreName()][f.StoredOffset+int64(r.IntN(f.StoredLen))] ^= 1
				wrong[i] = append(wrong[i], f.StoredOffset)
				first[i] = min(first[i], f.RawOffset)
			}
		}
	}
	v, err := NewPartVerifier(s)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i, pp := range parts {
		all.Go(func() {
			stored := int64(0)
			contents, damages, err := v.Verify(pp.Part, func(n int64) { stored += n })
			if err != nil || stored != pp.Part.Stored-pp.Part.TailStored {
				t.Errorf("part %d: read %d of %d bytes: %v", i, stored, pp.Part.Stored, err)
			}
			var got []int64
			for _, d := range damages {
				got = append(got, d.StoredOffset)
			}
			before := 0 // contents that end before the first damage
			for before < len(pp.Contents) && pp.Contents[before].RawOffset+pp.Contents[before].RawLen <= first[i] {
				before++
			}
			if !slices.Equal(got, wrong[i]) || fmt.Sprint(contents) != fmt.Sprint(pp.Contents[:before]) {
				t.Errorf("part %d: damage at %d, want %d; %d contents, want %d", i, got, wrong[i], len(contents), before)
			}
		})
	}
	all.Wait()
	if s.open != 0 {
		t.Errorf("%d parts are open", s.open)
	}
}
