package backup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/index"
)

// Rules say which generations of a source are kept: those that any rule keeps.
// Zero means that there is no such rule. Hours, days, weeks (ISO 8601), months
// and years are those of ForgetOptions.Zone.
type Rules struct {
	Last    int // the newest ones
	Hourly  int // the last one of each of so many hours that have any, and so on
	Daily   int
	Weekly  int
	Monthly int
	Yearly  int
	Within  Span // all of so long before the source's latest one
}

// None reports whether there is no rule.
func (r Rules) None() bool { return r == Rules{} }

// Span is a length of time in the calendar: a year of it ends at the same date.
type Span struct {
	Years, Months, Days, Hours int
}

// ParseSpan parses numbers with the units y, m (months), d and h: "14d", "1y6m",
// "36h". It must not be empty or nothing.
func ParseSpan(text string) (Span, error) {
	var s Span
	rest, units := text, "ymdh"
	for rest != "" {
		digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		n, err := strconv.Atoi(digits)
		if err != nil || n > 100_000 || len(rest) == len(digits) {
			return Span{}, fmt.Errorf("bad span %q: give it as 14d, 1y6m or 36h", text)
		}
		unit := strings.IndexByte(units, rest[len(digits)])
		if unit < 0 {
			return Span{}, fmt.Errorf("bad span %q: its units are y, m (months), d and h, in this order", text)
		}
		*[]*int{&s.Years, &s.Months, &s.Days, &s.Hours}[4-len(units)+unit] = n
		units = units[unit+1:]
		rest = rest[len(digits)+1:]
	}
	if s == (Span{}) {
		return Span{}, fmt.Errorf("bad span %q: it would keep nothing", text)
	}
	return s, nil
}

// String returns the span as ParseSpan reads it.
func (s Span) String() string {
	var b strings.Builder
	for i, n := range [...]int{s.Years, s.Months, s.Days, s.Hours} {
		if n > 0 {
			fmt.Fprintf(&b, "%d%c", n, "ymdh"[i])
		}
	}
	return b.String()
}

// before returns the time that is a span before t. A month that has no such day ends with
// its last one.
func (s Span) before(t time.Time) time.Time {
	year, month, day := t.Date()
	last := time.Date(year-s.Years, month-time.Month(s.Months)+1, 0, 0, 0, 0, 0, time.UTC).Day()
	beyond := max(day-last, 0)
	return t.AddDate(-s.Years, -s.Months, -s.Days-beyond).Add(-time.Duration(s.Hours) * time.Hour)
}

// Decision says what becomes of a generation, and why.
type Decision struct {
	index.Generation
	Keep    bool
	Reasons []string // the rules that keep it
}

// period is a rule that keeps the last generation of each of some periods.
type period struct {
	name string
	keep int
	of   func(time.Time) string // names the period that a time lies in
}

func (r Rules) periods() []period {
	layout := func(layout string) func(time.Time) string {
		return func(t time.Time) string { return t.Format(layout) }
	}
	return []period{
		// The hour that a clock shows twice, when summer time ends, is two hours.
		{"hourly", r.Hourly, layout("2006-01-02 15 -0700")},
		{"daily", r.Daily, layout("2006-01-02")},
		{"weekly", r.Weekly, func(t time.Time) string { return fmt.Sprint(t.ISOWeek()) }},
		{"monthly", r.Monthly, layout("2006-01")},
		{"yearly", r.Yearly, layout("2006")},
	}
}

// decide applies the rules to the generations of one source, which are ordered by
// number. The last one is always kept. Decisions come newest first, by number. Where a
// clock was wrong, or old backups were imported, the order of times is another one: what
// either order keeps is kept. A span is one before the latest time, but that is not in the
// future: of one backup made with a wrong clock, all others would be too old.
func (r Rules) decide(of []index.Generation, zone *time.Location, now time.Time) []Decision {
	list := make([]Decision, len(of))
	for i, g := range of {
		list[len(list)-1-i].Generation = g
	}
	if len(list) == 0 {
		return nil
	}
	list[0].because("newest")
	byNumber := make([]*Decision, len(list))
	for i := range list {
		byNumber[i] = &list[i]
	}
	byTime := slices.Clone(byNumber)
	slices.SortStableFunc(byTime, func(a, b *Decision) int { return b.Time.Compare(a.Time) })
	for _, order := range [][]*Decision{byNumber, byTime} {
		for _, d := range order[:min(r.Last, len(order))] {
			d.because("last")
		}
		for _, p := range r.periods() {
			p.apply(order, zone)
		}
	}
	r.keepWithin(byTime, zone, now)
	return list
}

func (p period) apply(list []*Decision, zone *time.Location) {
	seen := make(map[string]bool)
	for _, d := range list {
		if current := p.of(d.Time.In(zone)); !seen[current] && len(seen) < p.keep {
			seen[current] = true
			d.because(p.name)
		}
	}
}

func (r Rules) keepWithin(list []*Decision, zone *time.Location, now time.Time) {
	if r.Within == (Span{}) {
		return
	}
	latest := list[0].Time
	if latest.After(now) {
		latest = now
	}
	since := r.Within.before(latest.In(zone))
	for _, d := range list {
		if !d.Time.Before(since) {
			d.because("within " + r.Within.String())
		}
	}
}

func (d *Decision) because(reason string) {
	d.Keep = true
	if !slices.Contains(d.Reasons, reason) {
		d.Reasons = append(d.Reasons, reason)
	}
}
