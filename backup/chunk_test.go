package backup

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/backupfs/backupfs/archive"
)

func randomBytes(seed uint64, n int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	data := make([]byte, n)
	rng.Read(data)
	return data
}

func chunksOf(t testing.TB, data []byte, sizes chunkSizes) (chunks [][]byte) {
	t.Helper()
	var c chunker
	if err := c.each(iotest.HalfReader(bytes.NewReader(data)), sizes, func(chunk []byte) error {
		chunks = append(chunks, bytes.Clone(chunk))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.Join(chunks, nil), data) {
		t.Fatal("the chunks are not the data")
	}
	return chunks
}

func TestChunkSizes(t *testing.T) {
	sizes := chunkSizesFor(64 << 20)
	data := randomBytes(1, 32<<20)
	chunks := chunksOf(t, data, sizes)
	for i, chunk := range chunks {
		if len(chunk) > sizes.most || len(chunk) < sizes.least && i < len(chunks)-1 {
			t.Errorf("chunk %d has %d bytes", i, len(chunk))
		}
	}
	if mean := len(data) / len(chunks); mean < sizes.average/2 || mean > sizes.average*3/2 {
		t.Errorf("%d bytes on average, want about %d", mean, sizes.average)
	}
}

func TestChunkBounds(t *testing.T) {
	sizes := chunkSizesFor(0)
	for _, n := range []int{0, 1, sizes.least - 1, sizes.least, sizes.least + 1, sizes.most - 1, sizes.most, sizes.most + 1, 4*sizes.most + 1} {
		chunksOf(t, make([]byte, n), sizes) // zeros never end a chunk
		chunksOf(t, randomBytes(2, n), sizes)
	}
}

// TestChunksSurviveEdits: most chunks of a file are the same after a byte was
// inserted at its start, or a block in its middle replaced.
func TestChunksSurviveEdits(t *testing.T) {
	sizes := chunkSizesFor(0)
	data := randomBytes(3, 16<<20)
	before := make(map[archive.Hash]bool)
	for _, chunk := range chunksOf(t, data, sizes) {
		before[archive.HashOf(chunk)] = true
	}
	replaced := bytes.Clone(data)
	copy(replaced[8<<20:], randomBytes(4, 4096))
	for name, edited := range map[string][]byte{"inserted": append([]byte("x"), data...), "replaced": replaced} {
		stored := 0
		for _, chunk := range chunksOf(t, edited, sizes) {
			if !before[archive.HashOf(chunk)] {
				stored += len(chunk)
			}
		}
		if stored > 3*sizes.most {
			t.Errorf("%s: %d bytes are new", name, stored)
		}
	}
}

// TestChunksAreForever: other boundaries than those of earlier versions would
// store every large file again.
func TestChunksAreForever(t *testing.T) {
	var lengths []int
	for _, chunk := range chunksOf(t, randomBytes(5, 512<<10), chunkSizesFor(0)) {
		lengths = append(lengths, len(chunk))
	}
	want := []int{93816, 73197, 19850, 66365, 77571, 76777, 79241, 37471}
	if !slices.Equal(lengths, want) {
		t.Errorf("chunks of %v bytes, want %v", lengths, want)
	}
}

func TestChunkerErrors(t *testing.T) {
	broken := errors.New("broken")
	var c chunker
	if err := c.each(iotest.ErrReader(broken), chunkSizesFor(0), func([]byte) error { return nil }); !errors.Is(err, broken) {
		t.Errorf("a read error became %v", err)
	}
	if err := c.each(bytes.NewReader([]byte("x")), chunkSizesFor(0), func([]byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("an error of yield became %v", err)
	}
}

func BenchmarkChunker(b *testing.B) {
	data := randomBytes(6, 16<<20)
	b.SetBytes(int64(len(data)))
	var c chunker
	for b.Loop() {
		_ = c.each(bytes.NewReader(data), chunkSizesFor(0), func([]byte) error { return nil })
	}
}
