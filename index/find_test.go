package index

import (
	"errors"
	"testing"
	"time"
)

func TestFind(t *testing.T) {
	wantFound(t, []Generation{
		{Number: 1, Name: "2026-11-21T03-00-00Z"},
		{Number: 2, Source: "web1", Name: "2026-11-21T04-00-00Z"},
		{Number: 3, Name: "2026-11-22T03-00-00Z", Time: time.Date(2026, 11, 22, 3, 0, 0, 500, time.UTC)},
		{Number: 5, Name: "2026-11-22T15-00-00Z"},
		{Number: 6, Name: "2026-11-22T15-00-00Z.2"},
	}, map[string]uint64{
		"latest": 6, "latest~0": 6, "latest~1": 5, "latest~3": 1, "latest~4": 0, "latest~": 0, "latest~-1": 0, "latestx": 0,
		"1": 1, "2": 2, "4": 0, "2026": 6, "2026-11-21": 1, "2026-11-22T15-00-00Z": 5, "2026-11-22T03": 3,
		"2026-11-22T03:00": 3, "2026-11-22T03:00:00Z": 3, "2026-11-22T03:00:00.0000005Z": 3, "2026-11-22T04:00:00.0000005+01:00": 3,
		"2026-11-22T03:00:00.7Z": 0, "2026:11:22": 0, "web1/2026-11-21T04:00:00Z": 2, "2026-11-22T15:00:00Z": 5, "2026-11-22T": 6,
		"web1/latest": 2, "web1/2026": 2, "web1/2": 2, "web1/3": 0, "/3": 3, "/2": 0, "web2/latest": 0, "": 0, "20": 0, "/latest": 6, "2027": 0,
	})
}

// The whole name of a generation that was dropped is not the beginning of another one's.
func TestFindDropped(t *testing.T) {
	at := time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)
	second := Generation{Number: 6, Name: "2026-11-22T15-00-00Z.2", Time: at}
	third := Generation{Number: 7, Name: "2026-11-22T15-00-00Z.3", Time: at.Add(500)}
	last := Generation{Number: 24, Name: "2026-11-22T15-00-00Z.20", Time: at}
	wantFound(t, []Generation{second, third, last}, map[string]uint64{
		"2026-11-22T15-00-00Z": 0, "2026-11-22T15:00:00Z": 0, "2026-11-22T16:00:00+01:00": 0, "2026-11-22T15-00-00Z.": 0, "2026-11-22T15-00-00Z.2": 6,
		"2026-11-22T15:00:00Z.2": 6, "2026-11-22T15:00:00.0000005Z": 7, "2026-11-22T15-00-00Z.20": 24, "2026-11-22T15-00-00": 24, "2026-11-22T15:00": 24,
	})
	wantFound(t, []Generation{third, last}, map[string]uint64{"2026-11-22T15-00-00Z.2": 0, "2026-11-22T15:00:00Z.2": 0, "2026-11-22": 24})
}

func wantFound(t *testing.T, gens []Generation, found map[string]uint64) {
	t.Helper()
	for spec, want := range found {
		g, err := Find(gens, spec)
		if want == 0 {
			if !errors.Is(err, ErrNoGeneration) {
				t.Errorf("Find(%q) = %v, %v, want ErrNoGeneration", spec, g, err)
			}
		} else if err != nil || g.Number != want {
			t.Errorf("Find(%q) = %d, %v, want %d", spec, g.Number, err, want)
		}
	}
}
