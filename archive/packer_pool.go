package archive

import "sync"

// PackerPool is what packers that work at the same time share, so that many take
// little more memory than one: frames on their way, and the coders that compress
// them. What a packer writes does not depend on the others. When one fails or is
// aborted before it is closed, none of them can go on. Memory is bounded: 2·Workers + 1
// frames, raw and stored, one more for each packer, and an encoder and one more frame for
// each worker. A PackerPool is safe for concurrent use, and has not to be closed.
type PackerPool struct {
	options PackerOptions
	invalid error // what is wrong with the options
	frames  int   // at most

	free   chan *packFrame  // frames that nobody uses
	coders chan *frameCoder // that nobody uses; nil for one that was not needed yet

	failed   chan struct{} // closed when a packer has failed
	failOnce sync.Once
	err      error // valid once failed is closed
}

// NewPackerPool returns a pool for so many packers at most, with the same options.
func NewPackerPool(o PackerOptions, packers int) *PackerPool {
	p := &PackerPool{failed: make(chan struct{})}
	p.options, p.invalid = o.complete()
	if p.invalid != nil {
		return p
	}
	p.frames = 2*p.options.Workers + 1 + packers
	p.free = make(chan *packFrame, p.frames)
	for range 2*p.options.Workers + 1 {
		p.free <- newPackFrame()
	}
	p.coders = make(chan *frameCoder, p.options.Workers)
	for range p.options.Workers {
		p.coders <- nil
	}
	return p
}

// NewPacker returns a packer as the function NewPacker does, one of those that the
// pool is for.
func (o *PackerPool) NewPacker(s Store, published func(PublishedPart) error) *Packer {
	p := &Packer{pool: o, store: s, published: published, stop: make(chan struct{})}
	if o.invalid != nil {
		p.fail(o.invalid)
		return p
	}
	o.free <- newPackFrame() // for the one that it fills
	p.work = make(chan *packFrame, o.frames)
	p.order = make(chan *packFrame, o.frames)
	p.finished = make(chan finishedPart)
	for range o.options.Workers {
		p.wg.Go(p.compress)
	}
	p.wg.Go(p.write)
	p.wg.Go(p.publish)
	return p
}

// encode compresses a frame as soon as a coder has time.
func (o *PackerPool) encode(f *packFrame) (err error) {
	c := <-o.coders
	defer func() { o.coders <- c }()
	if c == nil {
		if c, err = newFrameCoder(o.options); err != nil {
			return err
		}
	}
	return c.encode(f)
}

func (o *PackerPool) fail(err error) {
	o.failOnce.Do(func() {
		o.err = err
		close(o.failed)
	})
}
