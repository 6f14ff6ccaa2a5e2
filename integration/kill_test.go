package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
// mount, while that mount is read and compared. What is asked for is the number of kills of
// create, reindex and check together. The repository is in memory: to wait for a disk
// took half of the time, and TestPowerCut has one.
func TestKilledAtRandom(t *testing.T) {
	s := newSurvivor(t, tmpfs(t, 512<<20), 101)
	w := s.watch()
	took := map[string]time.Duration{} // of a run that was not killed
	killed, committed, daemonKills, trees, goal := map[string]int{}, 0, 0, 0, scale(150, 2000)
	all := kinds()
	attacked := slices.Concat(all[:3], all[:3], all[:3], all[3:])
	kills := func() int { return killed["create"] + killed["reindex"] + killed["check"] }
	for round := 0; kills() < goal; round++ {
		if round > 10*goal {
			t.Fatalf("only %v of %d runs were killed", killed, round)
		}
		kind := attacked[round%len(attacked)]
		s.edit()
		name, args := kind.prepare(s)
		delay := commandLimit // the first run of each kind is measured
		if took[kind.command] > 0 {
			delay = time.Duration(rand.Int64N(int64(took[kind.command])))
		}
		began := time.Now()
		code, stderr := killAfter(t, s.command(kind.command, args...), delay)
		what := fmt.Sprintf("round %d, %s, after %v", round, kind.command, delay)
		switch code {
		case 128 + 9:
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
			waitFor(t, time.Minute, "the mount to be read once a round", func() bool { return w.read() >= trees+25 })
			trees = w.read()
		}
	}
	s.survived("at last", "", 0, true)
	w.stop()
	w.m.stop()
	s.whole()
	s.wantNoLeftovers()
	s.wantSound("at last")
	for i, kind := range all {
		least := goal / 4
		if i >= 3 {
			least = goal / 20
		}
		if killed[kind.command] < least {
			t.Errorf("%s was killed %d times only, want %d", kind.command, killed[kind.command], least)
		}
	}
	t.Logf("kills: %v; %d of them had committed a generation; %d kills of the daemon; %d trees read in the mount meanwhile, all right; %d generations at last",
		killed, committed, daemonKills, w.read(), len(s.generations()))
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
