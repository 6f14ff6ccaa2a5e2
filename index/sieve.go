package index

import (
	"math"
	"sort"
	"time"
)

// forgottenGrace is how long the versions of a forgotten generation stay, so
// that a mount that has files of it open can go on.
const forgottenGrace = 24 * time.Hour

// sieve tells which versions of which keys are still needed. The keys are
// offered in their order: directories and their entries come before inodes.
type sieve struct {
	needed []uint64         // ascending: the timestamps at which somebody may read
	died   map[DirID]uint64 // when a directory died
	inos   bitmap           // inodes that something refers to
	gone   map[uint64]bool  // numbers of parts that were removed
	kept   []version        // scratch
}

// newSieve prepares a sieve for an index that covers the record number. What a
// forgotten generation sees is kept for the time of grace.
func newSieve(t *tables, number uint64, grace time.Duration) (*sieve, error) {
	m, err := readMeta(t, number)
	if err != nil {
		return nil, err
	}
	s := &sieve{died: map[DirID]uint64{}, needed: []uint64{number}, gone: map[uint64]bool{}}
	if err := s.needGenerations(t, number, m.time.Add(-grace)); err != nil {
		return nil, err
	}
	err = scan(t, number, []byte{spacePart}, func(key, value []byte) error {
		if len(value) == 0 {
			s.gone[keyID(key)] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = scan(t, number, []byte{spaceSource}, func(_, value []byte) error {
		h, err := decodeHead(value)
		s.needed = append(s.needed, h.number)
		return err
	})
	if err != nil {
		return nil, err
	}
	sort.Slice(s.needed, func(i, j int) bool { return s.needed[i] < s.needed[j] })
	// A link that appears later may share the inode of its group.
	return s, scan(t, number, []byte{spaceGroup}, func(_, value []byte) error {
		g, err := decodeGroup(value)
		s.inos.set(g.ino)
		return err
	})
}

func (s *sieve) needGenerations(t *tables, number uint64, since time.Time) error {
	return scan(t, number, []byte{spaceGeneration}, func(key, value []byte) error {
		g, err := decodeGeneration(keyID(key), value)
		if !g.gone || g.forgotten.After(since) {
			s.needed = append(s.needed, keyID(key))
		}
		return err
	})
}

// keep returns the versions of a key, newest first, that are needed.
func (s *sieve) keep(key []byte, versions []version) ([]version, error) {
	switch key[0] {
	case spaceNode:
		return s.keepNode(DirID(keyID(key)), versions)
	case spaceDirent:
		return s.keepDirent(DirID(keyID(key)), versions)
	case spaceInode, spaceSegment, spaceXattr:
		if !s.inos.has(Ino(keyID(key))) {
			return nil, nil
		}
	case spaceContent:
		return s.keepContent(versions)
	case spaceGeneration:
		return s.keepGeneration(key, versions)
	}
	return versions[:1], nil
}

func (s *sieve) keepNode(d DirID, versions []version) ([]version, error) {
	if versions[0].value()[0] == kindGone {
		s.died[d] = versions[0].at
	}
	kept := s.visible(versions, math.MaxUint64)
	for _, v := range kept {
		n, there, err := decodeNode(v.value())
		if err != nil {
			return nil, err
		}
		if there {
			s.inos.set(n.Ino)
		}
	}
	return kept, nil
}

func (s *sieve) keepDirent(d DirID, versions []version) ([]version, error) {
	end, dead := s.died[d]
	if !dead {
		end = math.MaxUint64
	}
	kept := s.visible(versions, end)
	for _, v := range kept {
		e, err := decodeDirent(v.value())
		if err != nil {
			return nil, err
		}
		if e.kind == kindLeaf {
			s.inos.set(e.ino)
		}
	}
	return kept, nil
}

// keepContent keeps where a content lies, unless that part was removed, and the other
// places in parts that are still there.
func (s *sieve) keepContent(versions []version) ([]version, error) {
	kept := s.kept[:0]
	for i, v := range versions {
		at, err := decodePlace(v.value())
		if err != nil || i == 0 && s.gone[at.part] {
			return nil, err
		}
		if !s.gone[at.part] {
			kept = append(kept, v)
		}
	}
	s.kept = kept
	return kept, nil
}

// keepGeneration drops a generation that was forgotten and that nobody reads.
func (s *sieve) keepGeneration(key []byte, versions []version) ([]version, error) {
	number := keyID(key)
	g, err := decodeGeneration(number, versions[0].value())
	if g.gone && !s.neededIn(number, number+1) {
		return nil, err
	}
	return versions[:1], err
}

// visible returns those versions that a needed timestamp before end sees. A gone
// value with nothing older below it says nothing.
func (s *sieve) visible(versions []version, end uint64) []version {
	kept := s.kept[:0]
	for _, v := range versions {
		if v.at < end && s.neededIn(v.at, end) {
			kept = append(kept, v)
		}
		end = min(end, v.at)
	}
	s.kept = kept
	for n := len(kept); n > 0 && kept[n-1].value()[0] == kindGone; n-- {
		kept = kept[:n-1]
	}
	return kept
}

// neededIn reports whether a needed timestamp t has from ≤ t < end.
func (s *sieve) neededIn(from, end uint64) bool {
	i := sort.Search(len(s.needed), func(i int) bool { return s.needed[i] >= from })
	return i < len(s.needed) && s.needed[i] < end
}
