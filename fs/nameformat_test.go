package fs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/index"
)

func TestNameFormats(t *testing.T) {
	zone := time.Local
	time.Local = time.FixedZone("CET", 3600)
	t.Cleanup(func() { time.Local = zone })
	at := time.Date(2026, 11, 22, 23, 4, 5, 0, time.UTC)
	for format, want := range map[NameFormat]string{
		"@GMT-%Y.%m.%d-%H.%M.%S": "@GMT-2026.11.22-23.04.05",
		"%Y-%m-%d_%H-%M":         "2026-11-23_00-04",
		"%F %T %z":               "2026-11-23 00:04:05 +0100",
		"%a %e. %b":              "Mon 23. Nov",
		"100%% %j":               "100% 327",
		"%s":                     "1795388645",
	} {
		if err := format.Check(); err != nil {
			t.Error(err)
		}
		if got := format.of(at); got != want {
			t.Errorf("%q: %q, want %q", format, got, want)
		}
	}
	for format, want := range map[NameFormat]string{
		"%Y-%q":    "conversion",
		"%Y-%":     "conversion",
		"%Y%%%-%":  "conversion",
		"latest":   `all generations would have the name "latest"`,
		"%%Y":      "all generations",
		"%Y/%m/%d": "no name can hold",
		"%D":       "no name can hold",
		"%Y\x00":   "no name can hold",
		"%Y" + NameFormat(strings.Repeat("-", 250)): "names of 254 bytes",
	} {
		if err := format.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", format, err, want)
		}
	}
}

// A whole name leads to no generation that has another one, also where it is the
// beginning of that, or of the generation's own name.
func TestWholeNamesAreNoPrefixes(t *testing.T) {
	zone := time.Local
	time.Local = time.FixedZone("CET", 3600)
	t.Cleanup(func() { time.Local = zone })
	gens := []index.Generation{gen(1, "", "2026-11-22T23-30-00Z")} // the 23rd, in local time
	for format, names := range map[NameFormat]map[string]bool{
		"%Y-%m-%d":               {"2026-11-23": true, "2026-11": true, "2026-11-2": true, "2026-11-22T23": true, "2026-11-22": false},
		"%B %-d":                 {"November 23": true, "Nove": true, "2026-11-22": true, "November 2": false},
		"@GMT-%Y.%m.%d-%H.%M.%S": {"@GMT-2026.11.22": true, "@GMT-2026.11.22-23.3": true, "@GMT-2026.11.22-23.30.0": true, "2026-11-22": true, "@GMT-2026.11.22-23.30.01": false},
	} {
		c, err := newCatalog(gens, "", format, 9)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range names {
			if _, ok := c.root.lookup(name); ok != want {
				t.Errorf("%s: %q leads to it: %t, want %t", format, name, ok, want)
			}
		}
	}
}

// Generations whose names are the same, or those of something else, are told apart
// by their numbers, and a name that one of them had goes on leading to it.
func TestNamesThatAreTheSame(t *testing.T) {
	catalogOf := func(format NameFormat, gens ...index.Generation) *listing {
		t.Helper()
		c, err := newCatalog(gens, "", format, 9)
		if err != nil {
			t.Fatal(err)
		}
		return c.root
	}
	gens := []index.Generation{
		gen(1, "", "2026-11-21T03-00-00Z"),
		gen(2, "", "2026-11-21T04-00-00Z"),
		gen(3, "", "2026-11-21T04-00-00Z.2"),
		gen(4, "", "2026-11-22T03-00-00Z"),
		gen(5, "day-22.11.", "2026-11-22T03-00-00Z"),
	}
	want := func(l *listing, name string, number uint64) {
		t.Helper()
		e, ok := l.lookup(name)
		if ok != (number != 0) || e.generation.Number != number {
			t.Errorf("%q leads to %d, %t, want %d", name, e.generation.Number, ok, number)
		}
	}
	all := catalogOf("@GMT%d.%m.", gens...)
	if got := names(all.entries); !slices.Equal(got, []string{"@GMT21.11.", "@GMT21.11..2", "@GMT21.11..3", "@GMT22.11.", "latest", "day-22.11."}) {
		t.Errorf("%q", got)
	}
	for name, number := range map[string]uint64{"@GMT21.11.": 1, "@GMT21.11..1": 1, "@GMT21.11..2": 2, "@GMT22.11..4": 4, "@GMT22.11..3": 0, "@GMT22.11.x": 0,
		"@GMT2": 4, "latest": 4, "2026-11-21": 3, "2026-11-21T04-00-00Z": 2, "2026-11-21T04-00-00Z.2": 3, "2026-11-23": 0, "x.1": 0} {
		want(all, name, number)
	}
	later := catalogOf("@GMT%d.%m.", gens[1:]...)
	if got := names(later.entries); !slices.Equal(got, []string{"@GMT21.11.", "@GMT21.11..3", "@GMT22.11.", "latest", "day-22.11."}) {
		t.Errorf("without the first: %q", got)
	}
	want(later, "@GMT21.11..2", 2)
	want(later, "@GMT21.11..3", 3)
	longer := append(gens[:3:3], gen(15, "", "2026-11-21T05-00-00Z"), gen(20, "", "2026-11-21T06-00-00Z"), gen(29, "", "2026-11-21T07-00-00Z"))
	for _, l := range []*listing{catalogOf("@GMT%d.%m.", longer...), catalogOf("@GMT%d.%m.", longer[1:]...)} {
		for _, number := range []uint64{2, 3, 15, 20, 29} {
			want(l, fmt.Sprintf("@GMT21.11..%d", number), number)
		}
	}
	want(catalogOf("@GMT%d.%m.", longer...), "@GMT21.11..1", 1)
	few := catalogOf("@GMT%d.%m.", append(longer[:1:1], longer[4:]...)...) // 1, 20, 29
	for name, number := range map[string]uint64{"@GMT21.11..2": 0, "@GMT21.11..": 0, "@GMT21.11": 29} {
		want(few, name, number)
	}
	hidden := catalogOf("day-%d.%m.", gens[3:]...)
	if got := names(hidden.entries); !slices.Contains(got, "day-22.11..4") || !slices.Contains(got, "day-22.11.") {
		t.Errorf("beside a source of that name: %q", got)
	}
	if e := hidden.named["day-22.11."]; e.node != sourceNode("day-22.11.") {
		t.Errorf("the name of a source leads to %#x", e.node)
	}
}
