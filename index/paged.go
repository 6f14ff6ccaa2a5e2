package index

// pageLen is how many values a page has. Few: whoever makes a log chooses how far apart
// the numbers in it are, and each may take a page.
const pageLen = 128

// paged is an array of zeros without an end, which takes memory only for pages in which
// something was set: how many numbers a log says were given may be anything. It is
// fastest where the next index is near the last one. It is used by one goroutine. The
// zero value works.
type paged[T any] struct {
	pages  map[uint64]*[pageLen]T
	number uint64      // of the page that was looked for last, and
	last   *[pageLen]T // that page; nil where it is not there
}

// page returns the page of an index, nil where it is not there.
func (p *paged[T]) page(i uint64) *[pageLen]T {
	if n := i / pageLen; p.last == nil || p.number != n {
		p.number, p.last = n, p.pages[n]
	}
	return p.last
}

// get returns the value at an index.
func (p *paged[T]) get(i uint64) (value T) {
	if page := p.page(i); page != nil {
		value = page[i%pageLen]
	}
	return value
}

// at returns the value at an index, to be set.
func (p *paged[T]) at(i uint64) *T {
	page := p.page(i)
	if page == nil {
		if p.pages == nil {
			p.pages = map[uint64]*[pageLen]T{}
		}
		page = new([pageLen]T)
		p.pages[p.number], p.last = page, page
	}
	return &page[i%pageLen]
}

// bitmap is a set of inode numbers.
type bitmap struct{ words paged[uint64] }

func (b *bitmap) set(i Ino) {
	n := uint64(i) >> 1
	*b.words.at(n / 64) |= 1 << (n % 64)
}

func (b *bitmap) has(i Ino) bool {
	n := uint64(i) >> 1
	return b.words.get(n/64)&(1<<(n%64)) != 0
}
