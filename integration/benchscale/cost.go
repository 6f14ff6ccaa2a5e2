package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// cost is one point of each curve: what a tree of so many files, or one with so
// many generations, took. What was not measured is 0.
type cost struct {
	at                                                               int
	create, changed, unchanged, ready, find, read, versions, publish time.Duration
}

// curve is one of the measured things.
type curve struct {
	name  string
	color string
	of    func(cost) time.Duration
}

// curvesOf returns the curves of what was measured at one point at least.
func curvesOf(costs []cost) []curve {
	all := []curve{
		{"first create", "#c0392b", func(c cost) time.Duration { return c.create }},
		{"create after changes", "#c0392b", func(c cost) time.Duration { return c.changed }},
		{"find through the mount, cold", "#2471a3", func(c cost) time.Duration { return c.find }},
		{"create, nothing changed", "#b9770e", func(c cost) time.Duration { return c.unchanged }},
		{"mount ready", "#1e8449", func(c cost) time.Duration { return c.ready }},
		{"index of changes published", "#7d3c98", func(c cost) time.Duration { return c.publish }},
		{"versions of a file", "#117a8b", func(c cost) time.Duration { return c.versions }},
		{"first read of a file, cold", "#5d6d7e", func(c cost) time.Duration { return c.read }},
	}
	return slices.DeleteFunc(all, func(curve curve) bool {
		return !slices.ContainsFunc(costs, func(c cost) bool { return curve.of(c) != 0 })
	})
}

// tsv returns a line for each number of what is counted, with seconds.
func tsv(counted string, costs []cost) string {
	var b strings.Builder
	b.WriteString(counted)
	curves := curvesOf(costs)
	for _, curve := range curves {
		b.WriteString("\t" + curve.name + ", s")
	}
	for _, c := range costs {
		fmt.Fprintf(&b, "\n%d", c.at)
		for _, curve := range curves {
			fmt.Fprintf(&b, "\t%.4f", curve.of(c).Seconds())
		}
	}
	b.WriteString("\n")
	return b.String()
}

// The picture, in pixels: the plot between its margins, names at its right.
const (
	width, height                    = 760, 420
	left, right, top, bottom float64 = 70, 220, 50, 50
	labelHeight              float64 = 16
)

// axis maps a logarithmic range of powers of ten onto pixels.
type axis struct {
	low, high  float64 // exponents
	start, end float64 // pixels
}

// least is drawn in place of what is less, 0 too: the clocks tick no finer.
const least = 0.001

func exponent(v float64) float64 { return math.Log10(max(v, least)) }

// newAxis covers all values with whole powers of ten.
func newAxis(values []float64, start, end float64) axis {
	low, high := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		low, high = min(low, math.Floor(exponent(v))), max(high, math.Ceil(exponent(v)))
	}
	return axis{low: low, high: max(high, low+1), start: start, end: end}
}

func (a axis) at(v float64) float64 {
	return a.start + (exponent(v)-a.low)/(a.high-a.low)*(a.end-a.start)
}

// svg draws the curves, both axes logarithmic.
func svg(counted string, costs []cost) string {
	var counts, seconds []float64
	for _, c := range costs {
		counts = append(counts, float64(c.at))
		for _, curve := range curvesOf(costs) {
			seconds = append(seconds, curve.of(c).Seconds())
		}
	}
	x := newAxis(counts, left, width-right)
	y := newAxis(seconds, height-bottom, top)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%g" y="24" font-size="15">Seconds, by the number of %s (both logarithmic)</text>`+"\n", left, counted)
	grid(&b, x, y)
	labels := math.Inf(-1)
	for _, curve := range byHeight(costs) {
		var points []string
		for _, c := range costs {
			px, py := x.at(float64(c.at)), y.at(curve.of(c).Seconds())
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, curve.color)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), curve.color)
		last := curve.of(costs[len(costs)-1])
		labels = max(labels+labelHeight, y.at(last.Seconds())) // no label on top of another
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" fill="%s">%s</text>`+"\n", x.end+8, labels+4, curve.color, curve.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// byHeight returns the curves from the one that ends highest.
func byHeight(costs []cost) []curve {
	last := costs[len(costs)-1]
	return slices.SortedFunc(slices.Values(curvesOf(costs)), func(a, b curve) int { return cmp.Compare(b.of(last), a.of(last)) })
}

// grid draws a line and a label for every power of ten.
func grid(b *strings.Builder, x, y axis) {
	for e := x.low; e <= x.high; e++ {
		at := x.at(math.Pow(10, e))
		fmt.Fprintf(b, `<path d="M%.1f %gV%g" stroke="#ddd"/><text x="%.1f" y="%g" text-anchor="middle">%.0f</text>`+"\n", at, y.end, y.start, at, y.start+20, math.Pow(10, e))
	}
	for e := y.low; e <= y.high; e++ {
		at := y.at(math.Pow(10, e))
		fmt.Fprintf(b, `<path d="M%g %.1fH%g" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%g</text>`+"\n", x.start, at, x.end, x.start-8, at+4, math.Pow(10, e))
	}
}
