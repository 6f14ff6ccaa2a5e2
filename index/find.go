package index

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/archive"
)

// ErrNoGeneration says that no generation is meant by a name.
var ErrNoGeneration = errors.New("no such generation")

// Find returns the generation that spec means: "latest", "latest~2" (two before
// it), a generation's name or number, or a prefix of names that is a date and time or
// a part of one ("2026-11-22": the last of that day), where the time of day may
// have colons, or a time of RFC 3339. A spec of the form
// "SOURCE/GEN" means a generation of that source, any other one of the unnamed
// source, but for a number: that means a generation of any source. gens are ordered by
// number.
// The error wraps ErrNoGeneration.
func Find(gens []Generation, spec string) (Generation, error) {
	source, name, named := strings.Cut(spec, "/")
	of := gens
	if named {
		of = OfSource(gens, source)
	} else {
		source, name = "", spec
	}
	if g, ok := findNumber(of, name); ok {
		return g, nil
	}
	of = OfSource(of, source)
	if len(of) == 0 {
		return Generation{}, fmt.Errorf("%w: %q: %s has none", ErrNoGeneration, spec, DescribeSource(source))
	}
	if back, ok := latest(name); ok {
		if back >= len(of) {
			return Generation{}, fmt.Errorf("%w: %q: there are only %d", ErrNoGeneration, spec, len(of))
		}
		return of[len(of)-1-back], nil
	}
	if g, ok := findTime(of, name); ok {
		return g, nil
	}
	if g, ok := FindName(of, withDashes(name)); ok {
		return g, nil
	}
	return Generation{}, fmt.Errorf("%w: %q: `mkbackup list` shows those there are", ErrNoGeneration, spec)
}

// FindName returns the generation called name, or else the last one whose name
// begins with it; a prefix is at least a year, and shorter than any name: "….2" does
// not stand for the generation before it, once that is dropped. gens are of one source.
func FindName(gens []Generation, name string) (Generation, bool) {
	for _, g := range gens {
		if g.Name == name {
			return g, true
		}
	}
	if len(name) < len("2006") || len(name) >= len(archive.GenerationTimeFormat) {
		return Generation{}, false
	}
	for i := len(gens) - 1; i >= 0; i-- {
		if strings.HasPrefix(gens[i].Name, name) {
			return gens[i], true
		}
	}
	return Generation{}, false
}

// findTime returns the generation of exactly the time that name is in RFC 3339. A whole
// second is a name written otherwise, which "….2" of the same time does not have.
func findTime(gens []Generation, name string) (Generation, bool) {
	t, err := time.Parse(time.RFC3339, name)
	if err != nil {
		return Generation{}, false
	}
	own := t.UTC().Format(archive.GenerationTimeFormat)
	i := slices.IndexFunc(gens, func(g Generation) bool {
		return g.Time.Equal(t) && (t.Nanosecond() != 0 || g.Name == own)
	})
	if i < 0 {
		return Generation{}, false
	}
	return gens[i], true
}

// withDashes writes the time of day in a name as names of generations have it.
func withDashes(name string) string {
	date, clock, _ := strings.Cut(name, "T")
	if clock == "" {
		return name
	}
	return date + "T" + strings.ReplaceAll(clock, ":", "-")
}

// OfSource returns the generations of one source, in their order.
func OfSource(gens []Generation, source string) []Generation {
	var of []Generation
	for _, g := range gens {
		if g.Source == source {
			of = append(of, g)
		}
	}
	return of
}

// DescribeSource returns what messages call a source.
func DescribeSource(source string) string {
	if source == "" {
		return "the unnamed source"
	}
	return fmt.Sprintf("the source %q", source)
}

func findNumber(gens []Generation, spec string) (Generation, bool) {
	number, err := strconv.ParseUint(spec, 10, 64)
	if err != nil {
		return Generation{}, false
	}
	for _, g := range gens {
		if g.Number == number {
			return g, true
		}
	}
	return Generation{}, false
}

// latest parses "latest" and "latest~N".
func latest(name string) (back int, ok bool) {
	rest, ok := strings.CutPrefix(name, "latest")
	if !ok || rest == "" {
		return 0, ok
	}
	digits, ok := strings.CutPrefix(rest, "~")
	back, err := strconv.Atoi(digits)
	return back, ok && err == nil && back >= 0
}
