package backup

import (
	"slices"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

func TestParseSpan(t *testing.T) {
	for text, want := range map[string]Span{"14d": {Days: 14}, "1y6m": {Years: 1, Months: 6}, "36h": {Hours: 36}, "2y3m4d5h": {2, 3, 4, 5}, "1m1h": {Months: 1, Hours: 1}} {
		if got, err := ParseSpan(text); err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v (%s), %v, want %+v", text, got, got, err, want)
		}
	}
	for _, text := range []string{"", "14", "d", "0d", "-1d", "1d1y", "1d1d", "1w", "1.5d", " 1d", "1d ", "9999999d", "99999999999999999999d"} {
		if got, err := ParseSpan(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

// TestSpanBefore: a month before the last day of a month ends with the month before, and
// so a leap day has one in each year.
func TestSpanBefore(t *testing.T) {
	for _, c := range []struct{ span, of, want string }{
		{"1m", "2025-03-31T03:00:00Z", "2025-02-28T03:00:00Z"},
		{"1m", "2024-03-31T03:00:00Z", "2024-02-29T03:00:00Z"},
		{"1m", "2025-03-28T03:00:00Z", "2025-02-28T03:00:00Z"},
		{"1m", "2025-01-31T03:00:00Z", "2024-12-31T03:00:00Z"},
		{"15m", "2025-12-31T03:00:00Z", "2024-09-30T03:00:00Z"},
		{"1y", "2024-02-29T03:00:00Z", "2023-02-28T03:00:00Z"},
		{"4y", "2024-02-29T03:00:00Z", "2020-02-29T03:00:00Z"},
		{"1y1m1d1h", "2025-03-31T03:00:00Z", "2024-02-28T02:00:00Z"},
		{"31d", "2025-03-31T03:00:00Z", "2025-02-28T03:00:00Z"},
	} {
		span, err := ParseSpan(c.span)
		if err != nil {
			t.Fatal(err)
		}
		of, err := time.Parse(time.RFC3339, c.of)
		if err != nil {
			t.Fatal(err)
		}
		if got := span.before(of).Format(time.RFC3339); got != c.want {
			t.Errorf("%s before %s: %s, want %s", c.span, c.of, got, c.want)
		}
	}
}

// TestWithinAMonth keeps what was made a month before, at the same time of its last day.
func TestWithinAMonth(t *testing.T) {
	var gens []index.Generation
	for i, day := range []string{"2025-02-27", "2025-02-28", "2025-03-01", "2025-03-31"} {
		when, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		gens = append(gens, index.Generation{Number: uint64(i + 1), Time: when.Add(3 * time.Hour)})
	}
	for _, d := range (Rules{Within: Span{Months: 1}}).decide(gens, time.UTC, gens[3].Time) {
		if want := d.Number >= 2; d.Keep != want {
			t.Errorf("within 1m: %+v", d)
		}
	}
}

// TestRules applies rules to generations of Berlin time; in UTC their days and
// hours are others.
func TestRules(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	var gens []index.Generation
	for i, at := range []string{
		"2024-12-29T12:00:00+01:00", // 1: Sunday, ISO week 2024-52
		"2024-12-30T12:00:00+01:00", // 2: Monday, ISO week 2025-1
		"2025-01-01T00:30:00+01:00", // 3: still 2024 in UTC, ISO week 2025-1
		"2025-10-26T02:10:00+02:00", // 4: the hour that
		"2025-10-26T02:20:00+01:00", // 5: comes twice
		"2025-10-26T23:30:00+01:00", // 6
		"2025-11-26T23:30:00+01:00", // 7
		"2025-11-27T00:10:00+01:00", // 8
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		gens = append(gens, index.Generation{Number: uint64(i + 1), Time: when.UTC()})
	}
	now := gens[len(gens)-1].Time.Add(time.Hour)
	for name, c := range map[string]struct {
		rules Rules
		want  []uint64
	}{
		"last 1":           {Rules{Last: 1}, []uint64{8}},
		"last 3":           {Rules{Last: 3}, []uint64{8, 7, 6}},
		"last 99":          {Rules{Last: 99}, []uint64{8, 7, 6, 5, 4, 3, 2, 1}},
		"hourly 5":         {Rules{Hourly: 5}, []uint64{8, 7, 6, 5, 4}},
		"daily 3":          {Rules{Daily: 3}, []uint64{8, 7, 6}},
		"daily 5":          {Rules{Daily: 5}, []uint64{8, 7, 6, 3, 2}},
		"weekly 4":         {Rules{Weekly: 4}, []uint64{8, 6, 3, 1}},
		"monthly 3":        {Rules{Monthly: 3}, []uint64{8, 6, 3}},
		"yearly 2":         {Rules{Yearly: 2}, []uint64{8, 2}},
		"within 1 hour":    {Rules{Within: Span{Hours: 1}}, []uint64{8, 7}},
		"within 1 month":   {Rules{Within: Span{Months: 1}}, []uint64{8, 7}},
		"within 1m1d":      {Rules{Within: Span{Months: 1, Days: 1}}, []uint64{8, 7, 6, 5, 4}},
		"last 1, yearly 2": {Rules{Last: 1, Yearly: 2}, []uint64{8, 2}},
	} {
		var kept []uint64
		for _, d := range c.rules.decide(gens, berlin, now) {
			if d.Keep {
				kept = append(kept, d.Number)
			}
		}
		if !slices.Equal(kept, c.want) {
			t.Errorf("%s keeps %v, want %v", name, kept, c.want)
		}
	}
	// One that was made with a wrong clock does not make the others old.
	future := append(slices.Clone(gens), index.Generation{Number: 9, Time: now.AddDate(40, 0, 0)}, index.Generation{Number: 10, Time: now})
	for _, d := range (Rules{Within: Span{Months: 1, Days: 1}}).decide(future, berlin, now) {
		if want := d.Number >= 4; d.Keep != want {
			t.Errorf("within 1m1d beside one of the future: %+v", d)
		}
	}
	// The newest one is the last that was made, whatever its time.
	gens = append(gens, index.Generation{Number: 9, Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)})
	decisions := Rules{Last: 1}.decide(gens, berlin, now)
	if d := decisions[0]; d.Number != 9 || !slices.Equal(d.Reasons, []string{"newest", "last"}) {
		t.Errorf("%+v", d)
	}
	if d := decisions[1]; d.Number != 8 || !slices.Equal(d.Reasons, []string{"last"}) {
		t.Errorf("%+v", d)
	}
}

// TestRulesAndClocks: whatever the clock said when some generations were made, what was made
// last and what is of the latest times is kept: neither pushes the other out.
func TestRulesAndClocks(t *testing.T) {
	day := func(years, days int) time.Time { return time.Date(2026+years, 1, 1+days, 3, 0, 0, 0, time.UTC) }
	for name, wrong := range map[string]int{"ahead": 10, "behind": -10} {
		var gens []index.Generation
		for number := uint64(1); number <= 21; number++ { // a week right, a week wrong, a week right
			years := 0
			if number > 7 && number <= 14 {
				years = wrong
			}
			gens = append(gens, index.Generation{Number: number, Time: day(years, int(number))})
		}
		for rule, r := range map[string]Rules{"daily": {Daily: 7}, "last": {Last: 7}, "hourly": {Hourly: 7}} {
			for _, d := range r.decide(gens, time.UTC, day(0, 22)) {
				if want := d.Number > 14 || wrong > 0 && d.Number > 7; d.Keep != want {
					t.Errorf("%s, %s: %+v", name, rule, d)
				}
			}
			for _, d := range r.decide(gens[:14], time.UTC, day(wrong, 15)) {
				if want := d.Number > 7 || wrong < 0; d.Keep != want {
					t.Errorf("%s, %s, meanwhile: %+v", name, rule, d)
				}
			}
		}
	}
}

// TestSplit divides three frames of 2,048 raw bytes.
func TestSplit(t *testing.T) {
	frames := []archive.PartFrame{{RawOffset: 0, RawLen: 2048, StoredLen: 1000}, {RawOffset: 2048, RawLen: 2048, StoredLen: 1000}, {RawOffset: 4096, RawLen: 2048, StoredLen: 1000}}
	for name, c := range map[string]struct {
		spans      []span
		live, dead int64
	}{
		"nothing":        {nil, 0, 3000},
		"one frame":      {[]span{{512, 1536, 1}, {2560, 1536, 0}, {4608, 1536, 0}}, 1000, 2000},
		"half a frame":   {[]span{{512, 512, 0}, {1536, 300, 1}, {2560, 1536, 0}, {4608, 1536, 1}}, 1500, 1500},
		"over a border":  {[]span{{512, 512, 0}, {1536, 2560, 1}, {4608, 1536, 0}}, 1500, 1500},
		"all":            {[]span{{512, 5632, 1}}, 3000, 0},
		"a long header":  {[]span{{512, 512, 0}, {2560, 1536, 1}, {4608, 1536, 1}}, 2500, 500},
		"dead and alive": {[]span{{512, 1, 1}, {1536, 1, 0}, {2560, 1, 1}, {3584, 1, 0}, {4608, 1, 1}, {5632, 1, 0}}, 1500, 1500},
	} {
		if live, dead := split(frames, c.spans); live != c.live || dead != c.dead {
			t.Errorf("%s: %d live, %d dead, want %d, %d", name, live, dead, c.live, c.dead)
		}
	}
}

// TestPlan picks the parts with the best gain until few enough bytes are dead.
func TestPlan(t *testing.T) {
	part := func(name byte, age int, live, dead int64) *partUse {
		p := &partUse{age: age, live: live, dead: dead}
		p.Name[0], p.Stored = name, live+dead
		return p
	}
	u := &usage{parts: []*partUse{part(1, 5, 900, 100), part(2, 4, 0, 1000), part(3, 3, 500, 500), part(4, 2, 200, 800), part(5, 1, 1000, 0)}}
	bad := part(6, 9, 1000, 0)
	bad.bad, bad.dead = true, 500
	u.parts = append(u.parts, bad)
	for _, p := range u.parts {
		u.stored += p.Stored
		u.dead += p.dead
	}
	u.dead -= bad.dead
	for maxDead, want := range map[float64]string{0: "\x02\x04\x03\x01", 0.10: "\x02\x04\x03", 0.2: "\x02\x04", 0.5: "\x02", 1: "\x02"} {
		got := ""
		for _, p := range u.plan(maxDead) {
			got += string(p.Name[:1])
		}
		if got != want {
			t.Errorf("%v may stay dead: %q, want %q", maxDead, got, want)
		}
	}
	u = &usage{parts: []*partUse{part(1, 2, 600, 400), part(2, 1, 500, 500)}, stored: 2000, dead: 900}
	if got := u.plan(0.4); len(got) != 1 || got[0].Name[0] != 1 { // gains of 400·2/600 and 500·1/500
		t.Errorf("an older part with less dead data is worth more: %v", got)
	}
}
