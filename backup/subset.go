package backup

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/backupfs/backupfs/archive"
)

// Subset is a share of all parts: an arc of the circle of 2⁶⁴ points on which a
// part's name, which is a SHA-256, puts it. Arcs of a percentage laid end to end
// cover every part once around, whatever the percentage. The zero value means
// all parts.
type Subset struct {
	Start  uint64 // first point
	Length uint64 // points, 0 for all
}

// ParsePercentage returns the length of the subsets of a percentage such as
// "5%" or "2.5%": more than 0, at most 100; 0 stands for 100%.
func ParsePercentage(text string) (length uint64, err error) {
	digits, ok := strings.CutSuffix(text, "%")
	percent, parseErr := strconv.ParseFloat(digits, 64)
	if !ok || parseErr != nil || !(percent > 0 && percent <= 100) {
		return 0, fmt.Errorf("%q is no percentage: give one like 5%% or 2.5%%, more than 0 and at most 100", text)
	}
	if percent == 100 {
		return 0, nil
	}
	// rounded up, so that as many arcs as it takes to have 100% go all around
	return uint64(percent/100*(1<<64)) + 1, nil
}

// Next returns the subset that begins where this one ends.
func (s Subset) Next() Subset { return Subset{Start: s.Start + s.Length, Length: s.Length} }

// OnDay returns the subset of a day, counted from any other one: subsets of days
// that follow one another lie end to end.
func OnDay(day, length uint64) Subset {
	return Subset{Start: day * length, Length: length}
}

// has reports whether a part belongs to the subset.
func (s Subset) has(part archive.Digest) bool {
	return s.Length == 0 || binary.BigEndian.Uint64(part[:])-s.Start < s.Length
}
