package index

import (
	"errors"
	"testing"
	"time"
)

func TestFind(t *testing.T) {
	gens := []Generation{
		{Number: 1, Name: "2026-11-21T03-00-00Z"},
		{Number: 2, Source: "web1", Name: "2026-11-21T04-00-00Z"},
		{Number: 3, Name: "2026-11-22T03-00-00Z", Time: time.Date(2026, 11, 22, 3, 0, 0, 500, time.UTC)},
		{Number: 5, Name: "2026-11-22T15-00-00Z"},
		{Number: 6, Name: "2026-11-22T15-00-00Z.2"},
	}
	for spec, want := range map[string]uint64{
		"latest": 6, "latest~0": 6, "latest~1": 5, "latest~3": 1, "latest~4": 0, "latest~": 0, "latest~-1": 0, "latestx": 0,
		"1": 1, "2": 2, "4": 0, "2026": 6, "2026-11-21": 1, "2026-11-22T15-00-00Z": 5, "2026-11-22T03": 3,
		"2026-11-22T03:00": 3, "2026-11-22T03:00:00Z": 3, "2026-11-22T03:00:00.0000005Z": 3, "2026-11-22T04:00:00.0000005+01:00": 3,
		"2026-11-22T03:00:00.7Z": 0, "2026:11:22": 0, "web1/2026-11-21T04:00:00Z": 2, "2026-11-22T15:00:00Z": 5, "2026-11-22T": 6,
		"web1/latest": 2, "web1/2026": 2, "web1/2": 2, "web1/3": 0, "/3": 3, "/2": 0, "web2/latest": 0, "": 0, "20": 0, "/latest": 6, "2027": 0,
	} {
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
