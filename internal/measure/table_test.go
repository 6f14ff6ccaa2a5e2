package measure

import (
	"strings"
	"testing"
	"time"
)

func TestFigure(t *testing.T) {
	for want, figure := range map[string]Figure{
		"12.3 s (CPU 20.1)": Cost{Wall: 12_345 * time.Millisecond, CPU: 20_090 * time.Millisecond}.Of(),
		"0.150 s":           Duration(150 * time.Millisecond),
		"99.0 ms":           Duration(99 * time.Millisecond),
		"0.843 ms":          Duration(843 * time.Microsecond),
		"123 s":             Duration(123 * time.Second),
		"1.50 MiB":          Size(3 << 19),
		"2048 MiB":          Size(2 << 30),
		"300 KiB":           Size(300 << 10),
		"0.000 KiB":         Size(0),
		"1.05":              {Value: 1.05, Unit: Count},
	} {
		if got := figure.String(); got != want {
			t.Errorf("%+v is %q, want %q", figure, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var table Table
	table.Ratio("a", Duration(2*time.Second), "peer", Duration(4*time.Second), 0.5)
	table.Ratio("b", Size(300<<10), "pêer", Size(100<<10), 2.99)
	table.Ratio("c", Duration(time.Second), "peer", Duration(4*time.Second), 0)
	table.Limit("d", Size(1<<20), 1<<20)
	table.Limit("e", Duration(time.Second), 0.999)
	table.Note("f", Size(1<<20))
	var out strings.Builder
	if err := table.Print(&out, "ours"); err != nil {
		t.Fatal(err)
	}
	want := `| what | ours     | against |         | ratio | target     |        |
|------|----------|---------|---------|-------|------------|--------|
| a    | 2.00 s   | peer    | 4.00 s  | 0.50  | ≤ 0.50     | met    |
| b    | 300 KiB  | pêer    | 100 KiB | 3.00  | ≤ 2.99     | MISSED |
| c    | 1.00 s   | peer    | 4.00 s  | 0.25  |            |        |
| d    | 1.00 MiB |         |         |       | ≤ 1.00 MiB | met    |
| e    | 1.00 s   |         |         |       | ≤ 0.999 s  | MISSED |
| f    | 1.00 MiB |         |         |       |            |        |

2 targets met, 2 MISSED
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if table.Missed() != 2 {
		t.Errorf("%d missed, want 2", table.Missed())
	}
}
