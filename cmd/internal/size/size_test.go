package size

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "17": 17, "17B": 17, "512M": 512 << 20, "1GiB": 1 << 30, "1.5k": 1536, "2T": 2 << 40, "3MB": 3e6, "4KiB": 4096, "1G": 1 << 30, "1GB": 1e9,
		"64mib": 64 << 20, "64mb": 64e6, "20 MiB": 20 << 20, "1Mi": 1 << 20, "2P": 2 << 50, "1E": 1 << 60, "1eb": 1e18, ".5K": 512,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", " ", ".", "-1", "+1", "1X", "1iB", "1BB", "1MM", "1e30T", "0x10", "1_000", "1,5G", "NaN", "Inf", "1  M", "1M ", " 1M", "8E", "9999999999G", "1.2.3M"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q is taken for a size of %d", text, got)
		}
	}
}

func TestString(t *testing.T) {
	for want, b := range map[string]Bytes{"256MiB": 256 << 20, "1GiB": 1 << 30, "1000": 1000, "0": 0, "1025KiB": 1025 << 10, "7EiB": 7 << 60} {
		got := b.String()
		if again, err := Parse(got); got != want || err != nil || again != b {
			t.Errorf("%d = %q, want %q, which is %d (%v)", b, got, want, again, err)
		}
	}
}
