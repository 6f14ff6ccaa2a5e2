package fs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/index"
	"github.com/ncruces/go-strftime"
)

// NameFormat is how generations are called in a mount, by their time: a format of
// strftime(3), in English, as "@GMT-%Y.%m.%d-%H.%M.%S". The time is UTC where the
// format begins with "@GMT", as Samba wants it, else the local time. "" stands for
// the names that the generations have, which are UTC.
type NameFormat string

// gmtPrefix begins the formats that mean UTC.
const gmtPrefix = "@GMT"

// longest has the longest names of a weekday and a month, and two digits for all
// else; another time differs from it in all.
var (
	longest = time.Date(2026, time.September, 30, 23, 59, 58, 123456789, time.UTC) // a Wednesday
	another = time.Date(2031, time.May, 2, 3, 4, 5, 0, time.UTC)
)

// numberRoom is how many bytes of a name are left for a generation's number.
const numberRoom = len(".8388606")

// Check finds out whether a format makes names.
func (f NameFormat) Check() error {
	if f == "" {
		return nil
	}
	name := f.of(longest)
	switch {
	case strings.Contains(strftime.Format(strings.ReplaceAll(string(f), "%%", ""), longest), "%"):
		return fmt.Errorf("%q: a conversion that strftime(3) does not have", string(f))
	case name == f.of(another):
		return fmt.Errorf("%q: all generations would have the name %q", string(f), name)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%q: no name can hold what comes of it, %q", string(f), name)
	case len(name) > maxName-numberRoom:
		return fmt.Errorf("%q: names of %d bytes; at most %d are possible", string(f), len(name), maxName-numberRoom)
	}
	return nil
}

// of returns the name of a time.
func (f NameFormat) of(t time.Time) string {
	if strings.HasPrefix(string(f), gmtPrefix) {
		return strftime.Format(string(f), t.UTC())
	}
	return strftime.Format(string(f), t.Local())
}

// rename returns generations, which are of one source and ordered by number, with
// the names that they have in the mount. Of those with the same name, the first has
// it, and the later ones have their number behind it; so has the first where the
// name is one of others. Such a name leads to its generation even where it is not
// needed any more: see findNumbered.
func (f NameFormat) rename(gens []index.Generation, others []string) []index.Generation {
	if f == "" {
		return gens
	}
	gens = slices.Clone(gens)
	taken := make(map[string]bool, len(gens)+len(others))
	for _, name := range others {
		taken[name] = true
	}
	for i, g := range gens {
		name := f.of(g.Time)
		for taken[name] {
			name = fmt.Sprintf("%s.%d", name, g.Number)
		}
		taken[name] = true
		gens[i].Name = name
	}
	return gens
}

// findNumbered finds a generation by its name and number.
func (f NameFormat) findNumbered(gens []index.Generation, name string) (index.Generation, bool) {
	dot := strings.LastIndexByte(name, '.')
	number, err := strconv.ParseUint(name[dot+1:], 10, 64)
	if f == "" || dot < 0 || err != nil {
		return index.Generation{}, false
	}
	for _, g := range gens {
		if g.Number == number && f.of(g.Time) == name[:dot] {
			return g, true
		}
	}
	return index.Generation{}, false
}

// makes reports whether a name is a whole one, of some time. That is not known of all
// formats: most of those that cannot be read back, as %s, make names of one length only,
// so that none is the beginning of another.
func (f NameFormat) makes(name string) bool {
	t, err := strftime.Parse(string(f), name)
	return err == nil && f != "" && strftime.Format(string(f), t) == name // it reads 3 for 03, too
}

// findPrefix finds the last generation whose name begins with a part of a time, which is
// as long as a year at least. A number is no such part: ".8" is not the beginning of ".80".
func (f NameFormat) findPrefix(gens []index.Generation, name string) (index.Generation, bool) {
	if len(name) < len("2006") {
		return index.Generation{}, false
	}
	for _, g := range slices.Backward(gens) {
		if strings.HasPrefix(g.Name, name) && len(name) < len(f.of(g.Time)) {
			return g, true
		}
	}
	return index.Generation{}, false
}
