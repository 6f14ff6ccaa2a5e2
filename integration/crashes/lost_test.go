package crashes

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/disk/crash"
)

// notices looks for a crash that shows that the syncs called for at a place did
// nothing. Only states are judged that could not be if they had.
func (r *recording) notices(place string, first int, list []uint64) (how string, judged int) {
	known := map[stateKey]bool{}
	for _, seed := range list {
		for n := first + 1; n <= r.disk.Len(); n++ {
			epoch := r.at(n)
			state := r.disk.Crash(n, seed, place)
			key := keyOf(epoch, state)
			if known[key] || r.epochs[epoch].unknown || key == keyOf(epoch, r.disk.Crash(n, seed, "")) {
				continue
			}
			known[key] = true
			if err := r.judge(r.epochs[epoch], state, len(known)); err != nil {
				return fmt.Sprintf("%s, %d operations, seed %d: %v", r.epochs[epoch].command, n, seed, err), len(known)
			}
		}
	}
	return "", len(known)
}

func TestTmpLost(t *testing.T) {
	var recs []*recording
	for _, o := range abilities {
		recs = append(recs, life(t, o))
	}
	for _, s := range successions {
		for n := 1; ; n++ {
			r := young(t, crash.Options{})
			for _, j := range s.before {
				r.do(j)
			}
			r.disk.KillAtRename(n)
			if !r.die(s.victim) {
				break
			}
			r.do(s.next)
			recs = append(recs, r)
		}
	}
	places := map[string]bool{}
	for _, r := range recs {
		for p := range r.disk.Syncs() {
			if os.Getenv("FULL") == "" {
				p, _, _ = strings.Cut(p, " ")
			}
			places[p] = true
		}
	}
	for _, p := range slices.Sorted(maps.Keys(places)) {
		how, total := "", 0
		for i, r := range recs {
			first := -1
			for q, at := range r.disk.Syncs() {
				if (q == p || strings.HasPrefix(q, p+" ")) && (first < 0 || at < first) {
					first = at
				}
			}
			if first < 0 {
				continue
			}
			h, n := r.notices(p, first, seeds(3))
			total += n
			if h != "" {
				how = fmt.Sprint(i, " ", h)
				break
			}
		}
		if how == "" {
			t.Errorf("%s SURVIVES %d states", p, total)
		} else {
			t.Logf("%s: %d states, %s", p, total, how[:min(len(how), 200)])
		}
	}
	_ = regexp.MustCompile
	_ = filepath.Join
}
