package fs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/index"
)

func testCatalog(t *testing.T, source string, gens ...index.Generation) *catalog {
	t.Helper()
	c, err := newCatalog(gens, source, "", 9)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func gen(number uint64, source, name string) index.Generation {
	when, _, _ := strings.Cut(name, ".")
	at, err := time.Parse("2006-01-02T15-04-05Z", when)
	if err != nil {
		panic(err)
	}
	return index.Generation{Number: number, Source: source, Name: name, Time: at, Root: index.DirID(number + 1000)}
}

func names(entries []listed) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.name)
	}
	return all
}

func TestCatalog(t *testing.T) {
	gens := []index.Generation{
		gen(1, "", "2026-11-21T03-00-00Z"),
		gen(2, "web1", "2026-11-21T04-00-00Z"),
		gen(3, "", "2026-11-22T03-00-00Z"),
		gen(4, "", "2026-11-22T15-00-00Z"),
		gen(5, "web1", "2026-11-22T15-00-00Z"),
	}
	c := testCatalog(t, "", gens...)
	want := []string{"2026-11-21T03-00-00Z", "2026-11-22T03-00-00Z", "2026-11-22T15-00-00Z", "latest", "web1"}
	if got := names(c.root.entries); !slices.Equal(got, want) {
		t.Errorf("root = %q, want %q", got, want)
	}
	if n := c.root.directories(); n != 4 {
		t.Errorf("the root has %d directories", n)
	}
	for name, number := range map[string]uint64{"2026-11-21": 1, "2026-11-22": 4, "2026-11-22T03": 3, "latest": 4, "2026-11-2": 4, "202": 0, "x": 0, "2026-11-23": 0} {
		e, ok := c.root.lookup(name)
		if e.generation.Number != number || ok != (number != 0) {
			t.Errorf("lookup %q = %d, %t", name, e.generation.Number, ok)
		}
		if isListed := c.root.named[name].name != ""; ok && isListed != (e.node&viaMask == 0) && name != "latest" {
			t.Errorf("lookup %q = node %#x", name, e.node)
		}
	}
	second := gen(6, "", "2026-11-22T15-00-00Z.2")
	for name, number := range map[string]uint64{"2026-11-22T15-00-00Z": 0, "2026-11-22T15-00-00Z.": 0, second.Name: 6, "2026-11-22T15-00-00": 6} {
		if e, ok := testCatalog(t, "", gens[0], second).root.lookup(name); e.generation.Number != number || ok != (number != 0) {
			t.Errorf("lookup %q without the first of its second = %d, %t", name, e.generation.Number, ok)
		}
	}
	web := c.sources[c.root.named["web1"].node]
	if got := names(web.entries); !slices.Equal(got, []string{"2026-11-21T04-00-00Z", "2026-11-22T15-00-00Z", "latest"}) {
		t.Errorf("web1 = %q", got)
	}
	only := testCatalog(t, "web1", gens...)
	if got := names(only.root.entries); !slices.Equal(got, names(web.entries)) || only.root.node != rootNode {
		t.Errorf("web1 alone = %q", got)
	}
}

// A reader of the root finds its place again although the listing changed.
func TestListingOffsetsAreStable(t *testing.T) {
	a, b, d := gen(1, "", "2026-11-21T03-00-00Z"), gen(3, "", "2026-11-22T03-00-00Z"), gen(7, "", "2026-11-23T03-00-00Z")
	before, after := testCatalog(t, "", a, b).root, testCatalog(t, "", b, d).root
	at := before.named[a.Name].offset
	if got := names(after.after(at)); !slices.Equal(got, []string{b.Name, d.Name, "latest"}) {
		t.Errorf("behind the forgotten one: %q", got)
	}
	if got := names(after.after(before.named["latest"].offset)); got != nil {
		t.Errorf("behind latest: %q", got)
	}
	if before.mtime == after.mtime {
		t.Error("the change does not show in the time")
	}
}

func TestCatalogRefusesNumbersThatDoNotFit(t *testing.T) {
	g := gen(maxGeneration+1, "", "2026-11-21T03-00-00Z")
	if _, err := newCatalog([]index.Generation{g}, "", "", g.Number); err == nil || !strings.Contains(err.Error(), "8388607") {
		t.Errorf("error = %v", err)
	}
}

func TestFindGeneration(t *testing.T) {
	gens := []index.Generation{
		gen(1, "", "2026-11-21T03-00-00Z"), gen(2, "web1", "2026-11-21T04-00-00Z"), gen(3, "web1", "2026-11-22T04-00-00Z"),
	}
	for _, c := range []struct {
		source, spec string
		want         uint64
	}{
		{"", "latest", 1}, {"web1", "latest", 3}, {"web1", "latest~1", 2}, {"web1", "2", 2}, {"web1", "1", 0},
		{"web1", "2026-11-21", 2}, {"", "web1/latest", 3}, {"web1", "web1/latest", 3}, {"", "3", 3}, {"web2", "latest", 0},
	} {
		g, err := findGeneration(gens, c.source, c.spec)
		if g.Number != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("source %q, %q: %d, %v, want %d", c.source, c.spec, g.Number, err, c.want)
		}
	}
}

func TestNodes(t *testing.T) {
	for _, g := range []uint64{1, maxGeneration} {
		for _, d := range []index.DirID{1, maxDir} {
			node := dirNode(g, d)
			for _, via := range []uint64{viaFlag, viaName("2026"), viaMask} {
				if gg, dd, ok := splitDirNode(node | via); !ok || gg != g || dd != d {
					t.Errorf("dirNode(%d, %d) with %#x splits into %d, %d", g, d, via, gg, dd)
				}
			}
			if gg, dd, ok := splitDirNode(node); !ok || gg != g || dd != d {
				t.Errorf("dirNode(%d, %d) = %#x splits into %d, %d", g, d, node, gg, dd)
			}
			if _, ok := fileInode(node); ok {
				t.Errorf("%#x is a file too", node)
			}
			if _, ok := splitLinkNode(node); ok {
				t.Errorf("%#x is a link too", node)
			}
			if node|viaMask == ^uint64(0) {
				t.Errorf("%#x is go-fuse's own", node)
			}
		}
		if got, ok := splitLinkNode(linkNode(g)); !ok || got != g {
			t.Errorf("linkNode(%d) splits into %d", g, got)
		}
	}
	ways := map[uint64]string{0: "listed"}
	for n := range 31 {
		ways[viaName(strings.Repeat("x", n+1))] = "name"
		ways[viaVersion(n)] = "version"
	}
	if len(ways) != 63 {
		t.Errorf("%d ways to a directory are told apart", len(ways))
	}
	if checkDirectories(maxDir) != nil || checkDirectories(maxDir+1) == nil {
		t.Error("the limit of directories is not that of the nodes")
	}
	for _, node := range []uint64{rootNode, sourceNode("web1"), sourceNode("web2"), pathNodeID(0), pathNodeID(1<<64 - 1)} {
		_, file := fileInode(node)
		_, link := splitLinkNode(node)
		_, _, dir := splitDirNode(node)
		if file || link || dir {
			t.Errorf("%#x is of several kinds", node)
		}
	}
	if ino, ok := fileInode(uint64(index.FirstIno)); !ok || ino != index.FirstIno {
		t.Error("the first inode is no file")
	}
}
