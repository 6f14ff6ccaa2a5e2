package archive

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// benchSamples are 64 MiB in files of 16 KiB.
func benchSamples(content func(n int, seed uint64) []byte) []sample {
	samples := make([]sample, 4096)
	for i := range samples {
		samples[i] = sampleOf(fmt.Sprintf("dir%d/file%d", i/100, i), content(16<<10, uint64(i%64)))
	}
	return samples
}

func BenchmarkPacker(b *testing.B) {
	for name, content := range map[string]func(int, uint64) []byte{"text": textLike, "noise": noise} {
		samples := benchSamples(content)
		hashes := make([]Hash, len(samples))
		for i, x := range samples {
			hashes[i] = x.hash()
		}
		for _, workers := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/%d", name, workers), func(b *testing.B) {
				b.SetBytes(64 << 20)
				b.ReportAllocs()
				for b.Loop() {
					s, err := NewDirStore(b.TempDir())
					if err != nil {
						b.Fatal(err)
					}
					p := NewPacker(s, PackerOptions{Workers: workers}, nil)
					for i, x := range samples {
						if err := p.Add(x.m, hashes[i], x.b); err != nil {
							b.Fatal(err)
						}
					}
					if err := p.Close(); err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
			})
		}
	}
}

// benchReader returns a reader of a repository of 64 MiB of text in several parts.
func benchReader(b *testing.B, cacheBytes int64) (*Reader, []PublishedPart) {
	b.Helper()
	s, err := NewDirStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	parts := pack(b, s, PackerOptions{PartStored: 2 << 20}, benchSamples(textLike))
	r := NewReader(s, cacheBytes)
	b.Cleanup(func() { r.Close(); s.Close() })
	return r, parts
}

// BenchmarkReaderRandom reads 16 KiB at random places; hardly any frame is in the cache.
func BenchmarkReaderRandom(b *testing.B) {
	r, parts := benchReader(b, 4<<20)
	buf := make([]byte, 16<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		p := parts[rand.IntN(len(parts))].Part
		if err := r.ReadAt(p, buf, rand.Int64N(p.Raw-int64(len(buf)))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReaderWarm reads 16 KiB that are in the cache.
func BenchmarkReaderWarm(b *testing.B) {
	r, parts := benchReader(b, 256<<20)
	p := parts[0].Part
	buf := make([]byte, 16<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if err := r.ReadAt(p, buf, rand.Int64N(p.Raw-int64(len(buf)))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReaderSequential reads everything in pieces of 128 KiB, decoding ahead.
func BenchmarkReaderSequential(b *testing.B) {
	for _, ahead := range []bool{false, true} {
		b.Run(fmt.Sprintf("ahead=%v", ahead), func(b *testing.B) {
			r, parts := benchReader(b, 32<<20)
			buf := make([]byte, 128<<10)
			var total int64
			for _, pp := range parts {
				total += pp.Part.Raw
			}
			b.SetBytes(total)
			for b.Loop() {
				for _, pp := range parts {
					for off := int64(0); off+int64(len(buf)) <= pp.Part.Raw; off += int64(len(buf)) {
						if err := r.ReadAt(pp.Part, buf, off); err != nil {
							b.Fatal(err)
						}
						if ahead {
							r.Prefetch(pp.Part, off+int64(len(buf)), 4<<20)
						}
					}
				}
			}
		})
	}
}

func BenchmarkScanPart(b *testing.B) {
	s := newMemStore()
	pp := pack(b, s, PackerOptions{}, benchSamples(textLike))[0]
	b.SetBytes(pp.Part.Raw)
	for b.Loop() {
		if _, err := ScanPart(s, pp.Part.Name); err != nil {
			b.Fatal(err)
		}
	}
}
