package backup

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"slices"

	"github.com/backupfs/backupfs/archive"
)

// second is a content that generations need and that lies in two parts, seen from the one
// where it is not read: two runs at the same time stored it, or it was stored again while
// its part was missing. It is of no use there, unless the other one turns out to be bad.
type second struct {
	archive.Content
	in    *partUse
	first *partUse // where it is read
	at    int64    // raw offset there
}

// seconds returns those of some parts.
func seconds(parts []*partUse) (list []second) {
	for _, p := range parts {
		list = append(list, p.seconds...)
	}
	return list
}

// doubtful returns the seconds of what is read from parts that are damaged.
func (u *usage) doubtful() []second {
	return slices.DeleteFunc(seconds(u.parts), func(s second) bool { return !s.first.bad })
}

// secure reads contents where they are read, before a second place of them may go. Where
// one cannot be read there, but in the second place, the log is told that it lies in that.
// What cannot be read is damaged, and stays. If anything comes of this, changed is set.
func (c *compaction) secure(list []second) error {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b second) int {
		return cmp.Or(bytes.Compare(a.first.Name[:], b.first.Name[:]), cmp.Compare(a.at, b.at))
	})
	reader := archive.NewReader(c.repo.Store(), suspectCache)
	defer reader.Close()
	found := make(map[*partUse][]archive.Content)
	var buffer []byte
	for _, s := range list {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		first := archive.Content{Hash: s.Hash, RawOffset: s.at, RawLen: s.RawLen}
		readable, err := c.readable(reader, s.first, first, &buffer)
		if err != nil {
			return err
		}
		if readable {
			continue
		}
		if readable, err = c.readable(reader, s.in, s.Content, &buffer); err != nil {
			return err
		}
		if readable {
			found[s.in] = append(found[s.in], s.Content)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return c.restate(found)
}

// readable reads a content where it lies in a part, which is damaged where it cannot be
// read. buffer is scratch.
func (c *compaction) readable(r *archive.Reader, p *partUse, content archive.Content, buffer *[]byte) (bool, error) {
	err := readContent(r, p.Part, content, buffer)
	if err == nil || archive.IsInconclusive(err) {
		return err == nil, err
	}
	if !c.damaged[p.Name] {
		c.keepDamaged(p.Name, err)
		c.changed = true
	}
	return false, nil
}

// restate commits that contents lie in parts where they were read. Where another run took
// the number of the record, it has to be looked again who has what.
func (c *compaction) restate(found map[*partUse][]archive.Content) error {
	s, n := &survivors{}, 0
	for _, p := range c.usage.parts {
		contents := found[p]
		slices.SortFunc(contents, func(a, b archive.Content) int { return cmp.Compare(a.RawOffset, b.RawOffset) })
		if len(contents) > 0 {
			s.published = append(s.published, archive.PublishedPart{Part: p.Part, Contents: contents})
		}
		n += len(contents)
	}
	number := c.db.Number() + 1
	c.options.hooks.reach("before commit")
	stored, err := c.commitAs(number, s)
	c.changed = true
	if errors.Is(err, fs.ErrExist) {
		return c.reopen()
	}
	if err != nil {
		return err
	}
	c.summary.LogBytes += stored
	c.notef("the log says now where %s can be read that other parts have lost", count(n, "content", "contents"))
	return c.follow(number)
}
