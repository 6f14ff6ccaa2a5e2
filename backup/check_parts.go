package backup

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// structure checks that every part is there with its size and its tail, and
// returns those. Parts that only the log still names count, too, where the index
// does not go to its end.
func (c *checking) structure() ([]archive.Part, error) {
	named := make(map[archive.Digest]archive.Part)
	for name, p := range c.log.parts {
		named[name] = p
	}
	if err := c.db.Parts(func(p archive.Part) bool {
		named[p.Name] = p
		return true
	}); err != nil {
		return nil, err
	}
	c.options.Progress.start("parts", 0)
	var whole []archive.Part
	for _, p := range named {
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		c.result.Parts++
		c.result.StoredBytes += p.Stored
		err := archive.VerifyTail(c.repo.Store(), p)
		if err == nil {
			whole = append(whole, p)
			continue
		}
		if archive.IsInconclusive(err) {
			return nil, err
		}
		removed, logErr := c.removedMeanwhile(p.Name)
		if logErr != nil {
			return nil, logErr
		}
		if !removed {
			c.damagedPart(p.Name, true, err)
		}
	}
	slices.SortFunc(whole, func(a, b archive.Part) int { return slices.Compare(a.Name[:], b.Name[:]) })
	return whole, c.unnamed(named)
}

// unnamed counts the parts that no record names: another run has not committed
// yet, or was interrupted. Those that were removed are counted apart.
func (c *checking) unnamed(named map[archive.Digest]archive.Part) error {
	removed := make(map[archive.Digest]struct{})
	if err := c.db.Removals(func(part archive.Digest) error {
		removed[part] = struct{}{}
		return nil
	}); err != nil {
		return c.indexDamage(err)
	}
	for stored, err := range c.repo.Store().Names("parts/") {
		if err != nil {
			return fmt.Errorf("list the parts: %w", err)
		}
		name, ok := archive.ParsePartStoreName(stored)
		if !ok {
			c.notef("%s is not a part's name: nothing of this program made it", stored)
		} else if _, ok := removed[name]; ok {
			c.result.Undeleted++
		} else if _, ok := named[name]; !ok {
			c.result.Unnamed++
		}
	}
	if c.result.Undeleted > 0 {
		c.notef("%s removed by a compaction while another run was under way; the next run deletes the files", count(c.result.Undeleted, "part was", "parts were"))
	}
	if c.result.Unnamed > 0 && !c.result.Logless() {
		c.notef("%s named by no record: a run is under way, or was interrupted; the next run uses them", count(c.result.Unnamed, "part is", "parts are"))
	}
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// maxProblems is how many damages of one part, or missing parts, are reported one by one.
const maxProblems = 10

// damagedPart reports damages of a part. whole says that nothing of it can be read.
func (c *checking) damagedPart(name archive.Digest, whole bool, damages ...error) {
	c.mutex.Lock()
	part := c.damaged[name]
	if part == nil {
		part = &DamagedPart{Part: name}
		c.damaged[name] = part
	}
	part.whole = part.whole || whole
	c.mutex.Unlock()
	for i, err := range damages {
		var damage *archive.DamageError
		if !errors.As(err, &damage) {
			damage = &archive.DamageError{Part: name, Problem: "it cannot be read", Err: err}
		}
		part.Damages = append(part.Damages, damage)
		if i < maxProblems {
			c.damagef("%v", damage)
		}
	}
	if more := len(damages) - maxProblems; more > 0 {
		c.damagef("part %s is damaged in %d more places", name, more)
	}
}

// placeSum stands for the contents that lie in a part: two sums that are equal
// come from the same contents at the same places.
type placeSum struct {
	contents int
	sum      uint64 // of digests of each
}

func (s *placeSum) add(hash archive.Hash, rawOffset, rawLen int64) {
	var b [48]byte
	copy(b[:], hash[:])
	binary.BigEndian.PutUint64(b[32:], uint64(rawOffset))
	binary.BigEndian.PutUint64(b[40:], uint64(rawLen))
	digest := archive.HashOf(b[:])
	s.contents++
	s.sum += binary.BigEndian.Uint64(digest[:])
}

// readData reads the parts that are to be read, on all cores: every frame, and
// what lies in it against the places that the index gives.
func (c *checking) readData(parts []archive.Part) error {
	some := len(parts) > 0 // not where there is none
	parts = slices.DeleteFunc(parts, func(p archive.Part) bool { return !c.options.Subset.has(p.Name) })
	sums := make(map[archive.Digest]*placeSum, len(parts))
	total := int64(0)
	for _, p := range parts {
		sums[p.Name] = new(placeSum)
		total += p.Stored
	}
	c.options.Progress.start("data", total)
	err := c.db.Places(func(hash archive.Hash, place index.Place) error {
		if sum := sums[place.Part.Name]; sum != nil {
			sum.add(hash, place.RawOffset, place.RawLen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	verifier, err := archive.NewPartVerifier(c.repo.Store())
	if err != nil {
		return err
	}
	err = inParallel(parts, func(next func() (archive.Part, bool)) error {
		for p, ok := next(); ok; p, ok = next() {
			if err := c.readPart(verifier, p, *sums[p.Name]); err != nil {
				return err
			}
		}
		return nil
	})
	c.result.DataRead = some && err == nil
	return err
}

// inParallel runs work on all cores. Each takes items with next until there are
// no more. It returns the first error, after which no more are given out.
func inParallel[T any](items []T, work func(next func() (T, bool)) error) error {
	var mutex sync.Mutex
	var first error
	next := func() (item T, ok bool) {
		mutex.Lock()
		defer mutex.Unlock()
		if first != nil || len(items) == 0 {
			return item, false
		}
		item, items = items[0], items[1:]
		return item, true
	}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			if err := work(next); err != nil {
				mutex.Lock()
				first = cmp.Or(first, err)
				mutex.Unlock()
			}
		})
	}
	wg.Wait()
	return first
}

func (c *checking) readPart(v *archive.PartVerifier, p archive.Part, want placeSum) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	contents, damages, err := v.Verify(p, func(stored int64) { c.options.Progress.done.Add(stored) })
	if err != nil {
		return err
	}
	if len(damages) > 0 {
		if removed, err := c.removedMeanwhile(p.Name); removed || err != nil {
			return err
		}
	}
	if len(damages) == 0 {
		same, err := c.samePlaces(p, contents, want)
		if err != nil {
			return err
		}
		if !same {
			damages = append(damages, &archive.DamageError{Part: p.Name, Problem: "its contents are not those that the log says"})
		}
	}
	if len(damages) > 0 {
		errs := make([]error, len(damages))
		for i, d := range damages {
			errs[i] = d
		}
		c.damagedPart(p.Name, false, errs...)
		return nil
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.result.ReadParts++
	c.result.ReadBytes += p.Stored
	return nil
}

// samePlaces reports whether the contents found in a part include all that the
// index places there. Mostly they are the same; only where they are not, those
// of which the index knows another place are left out.
func (c *checking) samePlaces(p archive.Part, contents []archive.Content, want placeSum) (bool, error) {
	var all placeSum
	for _, content := range contents {
		all.add(content.Hash, content.RawOffset, content.RawLen)
	}
	if all == want {
		return true, nil
	}
	var here placeSum
	for _, content := range contents {
		place, err := c.db.Content(content.Hash)
		if err != nil && !errors.Is(err, index.ErrNotFound) {
			return false, err
		}
		if err == nil && place.Part.Name == p.Name && place.RawOffset == content.RawOffset {
			here.add(content.Hash, content.RawOffset, content.RawLen)
		}
	}
	return here == want, nil
}

// placed is a content that should lie in a damaged part.
type placed struct {
	archive.Content
	part  *DamagedPart
	in    archive.Part
	state state
}

// state tells what comes of reading the place of a content.
type state int

const (
	good       state = iota
	unreadable       // it fails: a reader looks elsewhere
	wrong            // other bytes, all of which have their digests: a reader takes them
)

// lostContents returns the contents that generations need and that cannot be read whatever the
// parts hold: a compaction removed theirs, which stands as a part without a name, or the log
// gives them another length where it is. To be sure of that takes as long as all else that is
// done without reading data: then only the index is asked which contents have no part.
func (c *checking) lostContents() (map[archive.Hash]*DamagedPart, error) {
	lost, removed := make(map[archive.Hash]*DamagedPart), &DamagedPart{whole: true}
	switch {
	case c.db.LastRemoval() == 0:
		return lost, nil
	case !c.options.ReadData:
		err := c.db.Gone(func(hash archive.Hash) { lost[hash] = removed })
		return lost, err
	}
	lengths, err := c.db.Lost()
	damages := make(map[archive.Digest][]error)
	for _, hash := range slices.SortedFunc(maps.Keys(lengths), func(a, b archive.Hash) int { return slices.Compare(a[:], b[:]) }) {
		place, err := c.db.Content(hash)
		if errors.Is(err, index.ErrNotFound) {
			lost[hash] = removed
			continue
		}
		if err != nil {
			return nil, err
		}
		name := place.Part.Name
		c.damagedPart(name, false)
		lost[hash] = c.damaged[name]
		damages[name] = append(damages[name], &archive.DamageError{Part: name,
			Problem: fmt.Sprintf("the log gives the content %s %d bytes there, and files have %d of it", hash, place.RawLen, lengths[hash])})
	}
	for name, errs := range damages {
		c.damagedPart(name, false, errs...)
	}
	return lost, err
}

// hits finds which contents of damaged parts cannot be read, by reading those of
// which anything may be left, and the files that have one. lost are contents that
// cannot be read for another reason.
func (c *checking) hits(lost map[archive.Hash]*DamagedPart) error {
	c.options.Progress.start("files", 0)
	var suspects []placed
	bad := make(map[archive.Hash]*DamagedPart)
	err := c.db.Places(func(hash archive.Hash, place index.Place) error {
		part := c.damaged[place.Part.Name]
		switch {
		case part == nil:
		case part.whole:
			bad[hash] = part
		default:
			suspects = append(suspects, placed{archive.Content{Hash: hash, RawOffset: place.RawOffset, RawLen: place.RawLen}, part, place.Part, good})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.readSuspects(suspects); err != nil {
		return err
	}
	for _, s := range suspects {
		switch s.state {
		case unreadable:
			bad[s.Hash] = s.part
		case wrong:
			lost[s.Hash] = s.part
		}
	}
	if err := c.elsewhere(bad); err != nil {
		return err
	}
	maps.Copy(bad, lost)
	for _, part := range bad {
		part.Contents++
	}
	holders, err := c.db.Holders(func(hash archive.Hash) bool { return bad[hash] != nil })
	if err != nil {
		return err
	}
	hit := make(map[uint64]bool)
	for _, holder := range holders {
		part := bad[holder.Content]
		part.Files = append(part.Files, holder)
		for _, g := range holder.Generations {
			hit[g.Number] = true
		}
		if part.Part == (archive.Digest{}) && c.damaged[part.Part] == nil {
			c.damaged[part.Part] = part
			c.damagef("a compaction removed parts whose contents generations still need: `mkbackup create --checksum` stores again what the source still has of them")
		}
	}
	for _, part := range c.damaged {
		part.Needless = part.whole && len(holders) == 0 && part.Elsewhere == 0
	}
	c.result.DamagedFiles, c.result.HitGenerations = len(holders), len(hit)
	return nil
}

// elsewhere takes the contents from bad that can be read from another part.
func (c *checking) elsewhere(bad map[archive.Hash]*DamagedPart) error {
	reader := archive.NewReader(c.repo.Store(), suspectCache)
	defer reader.Close()
	var buffer []byte
	for hash, part := range bad {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		others, err := c.db.Elsewhere(hash)
		if err != nil {
			return err
		}
		for _, p := range others { // a reader takes the first that it can read
			state := stateOf(reader, p.Part, archive.Content{Hash: hash, RawOffset: p.RawOffset, RawLen: p.RawLen}, &buffer)
			if state == unreadable {
				continue
			}
			if state == good {
				part.Elsewhere++
				delete(bad, hash)
			}
			break
		}
	}
	return nil
}

// stateOf reads a content where it lies in a part. buffer is scratch.
func stateOf(r *archive.Reader, p archive.Part, content archive.Content, buffer *[]byte) state {
	switch err := readContent(r, p, content, buffer); {
	case errors.Is(err, errWrong):
		return wrong
	case err != nil:
		return unreadable
	}
	return good
}

// errWrong says that all frames have their digests, but hold something else.
var errWrong = errors.New("other bytes than the log says")

// readContent reads a content where it lies in a part, and compares it with its hash. buffer is
// scratch.
func readContent(r *archive.Reader, p archive.Part, content archive.Content, buffer *[]byte) error {
	b := slices.Grow((*buffer)[:0], int(content.RawLen))[:content.RawLen]
	*buffer = b
	if err := r.ReadAt(p, b, content.RawOffset); err != nil {
		return err
	}
	if archive.HashOf(b) != content.Hash {
		return fmt.Errorf("part %s: raw offset %d, content %s: %w", p.Name, content.RawOffset, content.Hash, errWrong)
	}
	return nil
}

// suspectCache is the memory for decoded frames of damaged parts.
const suspectCache = 64 << 20

// readSuspects reads contents where they lie and notes what comes of that.
func (c *checking) readSuspects(suspects []placed) error {
	slices.SortFunc(suspects, func(a, b placed) int {
		return cmp.Or(slices.Compare(a.in.Name[:], b.in.Name[:]), cmp.Compare(a.RawOffset, b.RawOffset))
	})
	reader := archive.NewReader(c.repo.Store(), suspectCache)
	defer reader.Close()
	shares := slices.Collect(slices.Chunk(suspects, 64))
	return inParallel(shares, func(next func() ([]placed, bool)) error {
		var buffer []byte
		for share, ok := next(); ok; share, ok = next() {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			for i := range share {
				s := &share[i]
				s.state = stateOf(reader, s.in, s.Content, &buffer)
			}
		}
		return nil
	})
}
