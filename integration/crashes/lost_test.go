package crashes

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mutant is a sync that does nothing: a call in the program, by way of its caller and
// the caller of that. It is the beginning of what crash.Disk calls a place.
type mutant string

// call is the call itself.
func (m mutant) call() string { return strings.Fields(string(m))[0] }

// mutants returns those of a scenario, and the operations before which each is the same
// as the program.
func (s scenario) mutants() map[mutant]int {
	all := map[mutant]int{}
	for place, first := range s.disk.Syncs() {
		way := strings.Fields(place)
		m := mutant(strings.Join(way[:min(3, len(way))], " "))
		if known, ok := all[m]; !ok || first < known {
			all[m] = first
		}
	}
	return all
}

// notices looks for a crash that the scenario shows to be wrong where a sync does
// nothing. Only states are judged that could not be otherwise.
func (s scenario) notices(m mutant, first int) (how string) {
	judged := map[stateKey]bool{}
	for _, seed := range s.seeds {
		for n := max(s.from, first+1); n <= s.disk.Len(); n++ {
			e, state := s.epochs[s.at(n)], s.disk.Crash(n, seed, string(m))
			key := keyOf(e, state)
			if judged[key] || e.unknown || key == keyOf(e, s.disk.Crash(n, seed, "")) {
				continue
			}
			judged[key] = true
			if err := s.judge(e, state, len(judged)); err != nil {
				return fmt.Sprintf("noticed after %d states: %s: %s, %d operations, seed %d: %v", len(judged), s.name, e.command, n, seed, err)
			}
		}
	}
	return ""
}

// TestLostSyncs is the proof that the other tests here prove something: no sync in the
// program can be removed without one of their crashes showing it. The syncs are found in
// what the program does, and none that its source calls for may be missing there.
func TestLostSyncs(t *testing.T) {
	t.Parallel()
	missing := syncsInSource(t)
	found := map[mutant]string{} // how it was noticed; "" if it was not
	try := func(s scenario) {
		for m, first := range s.mutants() {
			delete(missing, m.call())
			if found[m] == "" {
				found[m] = s.notices(m, first)
			}
		}
	}
	for _, s := range lives(t) {
		try(s)
	}
	for _, pair := range successions {
		for s := range afterKills(t, pair.victim, pair.next, pair.full) {
			try(s)
		}
	}
	for call := range missing {
		t.Errorf("%s: no command here comes to this sync", call)
	}
	for m, how := range found {
		if how == "" {
			t.Errorf("%s: no crash shows that this sync is missing", m)
		} else {
			t.Logf("%s: %s", m, strings.Split(how, "\n")[0])
		}
	}
	t.Logf("%d syncs, %d ways to them", len(slices.Compact(calls(found))), len(found))
}

func calls(found map[mutant]string) (list []string) {
	for m := range maps.Keys(found) {
		list = append(list, m.call())
	}
	slices.Sort(list)
	return list
}

// syncsInSource returns where the source of the programs calls for a sync:
// package/file:line.
func syncsInSource(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, dir := range []string{"archive", "index", "backup", "fs", "cmd/mkbackup", "cmd/backupfs"} {
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(dir, files, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(string(text), "\n") {
				if strings.Contains(line, ".Sync()") || strings.Contains(line, ".SyncDir(") {
					found[fmt.Sprintf("%s/%s:%d", filepath.Base(dir), filepath.Base(name), i+1)] = true
				}
			}
		}
	}
	return found
}
