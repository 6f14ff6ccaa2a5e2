package measure

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Figure is a measured value in seconds, bytes or a number of things.
type Figure struct {
	Value float64
	Unit  Unit
	CPU   time.Duration // shown beside the value where it is not 0
}

// Unit is what a figure counts.
type Unit int

// Units of figures.
const (
	Seconds Unit = iota
	Bytes
	Count
)

// Of returns the wall time of a cost, with its processor time.
func (c Cost) Of() Figure { return Figure{Value: c.Wall.Seconds(), CPU: c.CPU} }

// Duration returns a time as a figure.
func Duration(d time.Duration) Figure { return Figure{Value: d.Seconds()} }

// Size returns a number of bytes as a figure.
func Size(bytes int64) Figure { return Figure{Value: float64(bytes), Unit: Bytes} }

// String gives three significant digits: "12.3 s (CPU 20.1)", "0.843 ms", "230 MiB".
func (f Figure) String() string {
	s := ""
	switch {
	case f.Unit == Count:
		s = digits(f.Value)
	case f.Unit == Bytes && f.Value >= 1<<20:
		s = digits(f.Value/(1<<20)) + " MiB"
	case f.Unit == Bytes:
		s = digits(f.Value/(1<<10)) + " KiB"
	case f.Value < 0.1:
		s = digits(f.Value*1000) + " ms"
	default:
		s = digits(f.Value) + " s"
	}
	if f.CPU != 0 {
		s += fmt.Sprintf(" (CPU %s)", digits(f.CPU.Seconds()))
	}
	return s
}

func digits(v float64) string {
	return fmt.Sprintf("%.*f", min(max(2-int(math.Floor(math.Log10(max(v, 0.001)))), 0), 3), v)
}

// Table collects comparisons. The zero value is an empty one.
type Table struct {
	lines  [][]string
	met    int
	missed int
}

// Ratio compares a figure with that of a peer: the target is met where it is at
// most so many times as large. A target of 0 is none: the ratio is only shown.
func (t *Table) Ratio(what string, ours Figure, peer string, theirs Figure, target float64) {
	ratio := ours.Value / theirs.Value
	line := []string{what, ours.String(), peer, theirs.String(), fmt.Sprintf("%.2f", ratio), "", ""}
	if target > 0 {
		line[5], line[6] = fmt.Sprintf("≤ %.2f", target), t.judge(ratio <= target)
	}
	t.lines = append(t.lines, line)
}

// Limit compares a figure with a limit in the same unit.
func (t *Table) Limit(what string, ours Figure, limit float64) {
	t.lines = append(t.lines, []string{what, ours.String(), "", "", "", "≤ " + Figure{Value: limit, Unit: ours.Unit}.String(), t.judge(ours.Value <= limit)})
}

// Note shows a figure that has no target.
func (t *Table) Note(what string, ours Figure) {
	t.lines = append(t.lines, []string{what, ours.String(), "", "", "", "", ""})
}

func (t *Table) judge(met bool) string {
	if met {
		t.met++
		return "met"
	}
	t.missed++
	return "MISSED"
}

// Missed returns how many targets were missed.
func (t *Table) Missed() int { return t.missed }

// Print writes the table as Markdown, and how many targets were met.
func (t *Table) Print(w io.Writer, ours string) error {
	lines := append([][]string{{"what", ours, "against", "", "ratio", "target", ""}}, t.lines...)
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, line := range lines {
		for i, cell := range line {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, width := range widths {
				b.WriteString("|" + strings.Repeat("-", width+2))
			}
			b.WriteString("|\n")
		}
	}
	_, err := fmt.Fprintf(w, "%s\n%d targets met, %d MISSED\n", b.String(), t.met, t.missed)
	return err
}
