package treetest

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// RandomOptions bounds a made-up tree. Zero fields take the defaults.
type RandomOptions struct {
	Dirs    int   // directories below the root; default 20
	Files   int   // entries that are no directories; default 200
	MaxSize int64 // of a generated file in bytes; default 64 KiB
	Owners  bool  // owners, devices and trusted.* xattrs too, which need root
}

// Random returns the nodes of a made-up tree: nasty names, all types, modes,
// times, xattrs, sparse files and hard links. The same seed and options always
// give the same tree.
func Random(seed uint64, o RandomOptions) []Node {
	if o.Dirs == 0 {
		o.Dirs = 20
	}
	if o.Files == 0 {
		o.Files = 200
	}
	if o.MaxSize == 0 {
		o.MaxSize = 64 << 10
	}
	g := &generator{rng: rand.New(rand.NewPCG(seed, 1)), o: o, dirs: []string{"."}}
	for i := range o.Dirs {
		g.addDir(i)
	}
	for i := range o.Files {
		g.addEntry(i)
	}
	return g.nodes
}

type generator struct {
	rng   *rand.Rand
	o     RandomOptions
	nodes []Node
	dirs  []string
	links []string // what can be hard-linked
}

// oddNames are parts of names that programs stumble over.
var oddNames = []string{"plain", "with space", "new\nline", "back\\slash", "tab\t", "\xff\xfe", "-rf", ".wh.x",
	"ünï", "star*?[a]", "quote'\"", "$(x)", "end.", "~", "#", "%2f", "a:b"}

func (g *generator) name(i int) string {
	return fmt.Sprintf("%s%d", oddNames[g.rng.IntN(len(oddNames))], i)
}

func (g *generator) addDir(i int) {
	p := join(g.dirs[g.rng.IntN(len(g.dirs))], g.name(i)+"d")
	g.dirs = append(g.dirs, p)
	n := Node{Path: p, Type: Dir, Mode: 0o700 | g.rng.Uint32N(0o2000)}
	g.common(&n)
	g.nodes = append(g.nodes, n)
}

func (g *generator) addEntry(i int) {
	n := Node{Path: join(g.dirs[g.rng.IntN(len(g.dirs))], g.name(i))}
	switch k := g.rng.IntN(20); {
	case k < 13:
		g.file(&n)
	case k < 15:
		n.Type, n.Target = Symlink, g.name(g.rng.IntN(g.o.Files))
	case k < 16:
		n.Type = []Type{FIFO, Socket}[g.rng.IntN(2)]
	case k < 17 && g.o.Owners:
		n.Type, n.Major, n.Minor = []Type{Char, Block}[g.rng.IntN(2)], g.rng.Uint32N(4000), g.rng.Uint32N(1<<20)
	case len(g.links) > 0:
		n.Type, n.Target = HardLink, g.links[g.rng.IntN(len(g.links))]
		g.nodes = append(g.nodes, n)
		return
	}
	g.common(&n)
	g.links = append(g.links, n.Path)
	g.nodes = append(g.nodes, n)
}

func (g *generator) file(n *Node) {
	n.Mode = g.rng.Uint32N(0o1000) | 1 // 0 would ask for the usual mode
	if !g.o.Owners {
		n.Mode |= 0o600 // an Editor that is not root must be able to write
	}
	switch g.rng.IntN(8) {
	case 0: // empty
	case 1: // sparse
		n.Size = 1 + g.rng.Int64N(4<<20)
		n.Extents = []Extent{{Offset: g.rng.Int64N(n.Size), Data: Content(g.rng.Uint64()|1, 1)}}
	case 2: // one of few contents, many times
		n.Seed, n.Size = 1+g.rng.Uint64N(5), 10_000
	default:
		n.Seed, n.Size = g.rng.Uint64()|1, g.rng.Int64N(g.o.MaxSize)
	}
}

func (g *generator) common(n *Node) {
	n.Mtime = time.Unix(g.rng.Int64N(2_000_000_000), g.rng.Int64N(1_000_000_000))
	if !g.o.Owners {
		if n.Type == File && g.rng.IntN(8) == 0 {
			n.Xattrs = map[string]string{"user.x": string(Content(g.rng.Uint64()|1, g.rng.Int64N(200)))}
		}
		return
	}
	n.UID, n.GID = g.rng.Uint32N(200_000), g.rng.Uint32N(200_000)
	if g.rng.IntN(8) == 0 {
		n.Xattrs = map[string]string{"trusted.x": string(Content(g.rng.Uint64()|1, g.rng.Int64N(200)))}
	}
}
