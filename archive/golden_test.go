package archive

import (
	"os"
	"strings"
	"testing"
)

// goldenSamples are the contents of the golden parts.
func goldenSamples() []sample {
	return []sample{
		sampleOf("hello", []byte("hello\n")),
		{Member{Name: strings.Repeat("\xff", 101), Mode: 0o4755, UID: 1 << 31, GID: 7, Mtime: Timespec{Sec: -1}}, []byte("not UTF-8")},
		sampleOf("noise", noise(3000, 1)),
		sampleOf("zeros", make([]byte, 5000)),
		sampleOf(".chunks/aa/aa", []byte(strings.Repeat("backup ", 300))),
	}
}

// TestGoldenParts reads parts as released versions wrote them. They are read
// for ever: a part that is in testdata never changes and never goes.
func TestGoldenParts(t *testing.T) {
	for _, file := range []string{"part-1.tar.zst"} {
		b, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var name Digest
		sum := run(t, "sha256sum", "testdata/"+file)
		if err := name.UnmarshalText([]byte(sum[:64])); err != nil {
			t.Fatal(err)
		}
		s := newMemStore()
		s.objects[PartStoreName(name)] = b
		pp, err := ScanPart(s, name)
		if err != nil {
			t.Fatal(err)
		}
		checkRoundTrip(t, s, []PublishedPart{pp}, goldenSamples())
		if list := untar(t, b); strings.Count(list, "\n") < len(goldenSamples()) || !strings.Contains(list, "-rwsr-xr-x") {
			t.Error(list)
		}
	}
}
