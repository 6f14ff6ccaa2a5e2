package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// These tests kill the programs, at random times and before every system call that
// changes something. What a run has acknowledged stays, what it has not is whole or
// is not there, and the next run needs no help. SOAK=1 makes them thorough.

// scale returns the number for a short test, or the one for a soak.
func scale(short, long int) int {
	if soak() {
		return long
	}
	return short
}

// TestKilledAtRandom kills commands at random times, and now and then the daemon of a
// mount, while that mount is read and compared.
func TestKilledAtRandom(t *testing.T) {
	s := newSurvivor(t, tempDir(t), 101)
	w := s.watch()
	took := map[string]time.Duration{} // of a run that was not killed
	killed, committed, daemonKills, goal := map[string]int{}, 0, 0, scale(150, 2000)
	kinds := kinds()
	kills := 0
	for round := 0; kills < goal; round++ {
		if round > 10*goal {
			t.Fatalf("only %d of %d runs were killed", kills, round)
		}
		kind := kinds[round%len(kinds)]
		s.edit()
		name, args := kind.prepare(s)
		delay := commandLimit // the first run of each kind is measured
		if took[kind.command] > 0 {
			delay = time.Duration(rand.Int64N(int64(took[kind.command])))
		}
		began := time.Now()
		code, stderr := killAfter(t, s.command(kind.command, args...), delay)
		what := fmt.Sprintf("kill %d, of %s after %v", kills, kind.command, delay)
		switch code {
		case 128 + 9:
			kills++
			killed[kind.command]++
		case 0:
			took[kind.command] = time.Since(began)
		default:
			t.Fatalf("%s: exit code %d\n%s", what, code, tail(stderr))
		}
		if s.survived(what, name, code, kind.command == "compact") && code != 0 {
			committed++
		}
		s.whole()
		if round%25 == 24 {
			w.killDaemon()
			daemonKills++
			s.wantSound(what)
		}
	}
	s.survived("at last", "", 0, true)
	trees := w.stop()
	if trees < 10 {
		t.Errorf("only %d trees were read meanwhile", trees)
	}
	w.m.stop()
	s.whole()
	s.wantNoLeftovers()
	s.wantSound("at last")
	t.Logf("%d kills: %v; %d of them had committed a generation; %d kills of the daemon; %d trees read in the mount meanwhile, all right; %d generations at last",
		kills, killed, committed, daemonKills, trees, len(s.generations()))
}

// kind is a command that is attacked.
type kind struct {
	command string
	// prepare returns the arguments, and the generation that the command is to make, "" for none.
	prepare func(s *survivor) (created string, args []string)
}

func kinds() []kind {
	return []kind{
		{"create", func(s *survivor) (string, []string) { return s.next() }},
		{"reindex", func(*survivor) (string, []string) { return "", nil }},
		{"check", func(*survivor) (string, []string) { return "", []string{"--read-data"} }},
		{"forget", func(s *survivor) (string, []string) { return "", s.drop() }},
		{"compact", func(s *survivor) (string, []string) {
			if res := s.mkbackup("forget", s.drop()...); res.code != 0 {
				s.t.Fatalf("forget: exit code %d\n%s", res.code, res.stderr)
			}
			return "", []string{"--max-dead", "0"}
		}},
	}
}
