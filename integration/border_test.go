package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// Users and groups that own what is in a tree of random rights, are named in its
// ACLs, and ask.
var (
	borderUsers  = []uint32{0, 1000, 1001, 2000, 70_000, 4_000_000_000}
	borderGroups = []uint32{0, 100, 1000, 2000, 70_000, 4_000_000_000}
)

var borderIdentities = []identity{
	{caps: "+all"},
	{caps: "+all,-dac_override,-dac_read_search"},
	{caps: "+dac_read_search"},
	{}, // root without any capability
	{uid: 1000, gid: 1000},
	{uid: 1000, gid: 0},
	{uid: 1000, gid: 3000, groups: []int{100, 2000}},
	{uid: 1001, gid: 1000},
	{uid: 1001, gid: 100},
	{uid: 2000, gid: 2000},
	{uid: 2000, gid: 3000, groups: []int{0, 70_000}},
	{uid: 3000, gid: 3000},
	{uid: 3000, gid: 100},
	{uid: 3000, gid: 3000, groups: []int{100, 1000, 2000}},
	{uid: 70_000, gid: 70_000},
	{uid: 70_000, gid: 1000, groups: []int{100, 70_000}},
	{uid: 65_534, gid: 65_534},
	{uid: 4_000_000_000, gid: 4_000_000_000},
	{uid: 3000, gid: 3000, caps: "+dac_read_search"},
	{uid: 3000, gid: 3000, caps: "+sys_admin"},
}

// rights makes up who may do what.
type rights struct {
	t   *testing.T
	rng *rand.Rand
}

func (r rights) one(of []uint32) uint32 { return of[r.rng.IntN(len(of))] }

// mode is any one, or for every second node one that lets many people pass.
func (r rights) mode(dir bool) uint32 {
	usual := []uint32{0o644, 0o755, 0o640, 0o600, 0o711, 0o4755, 0o2755, 0o777}
	if dir {
		usual = []uint32{0o755, 0o711, 0o750, 0o1777, 0o2775, 0o755, 0o777, 0o751}
	}
	if r.rng.IntN(2) == 0 {
		return r.one(usual)
	}
	if any := r.rng.Uint32N(0o10000); any != 0 {
		return any
	}
	return treetest.ModeNone
}

// acl has named users and groups, and mostly a mask.
func (r rights) acl() string {
	some := func(tag string, ids []uint32) (entries string) {
		for _, id := range ids {
			if r.rng.IntN(3) == 0 {
				entries += fmt.Sprintf("%s:%d:%s,", tag, id, r.permissions())
			}
		}
		return entries
	}
	users, groups := some("u", borderUsers), some("g", borderGroups)
	mask := ""
	if users+groups != "" || r.rng.IntN(2) == 0 {
		mask = "m::" + r.permissions() + ","
	}
	return acl(r.t, fmt.Sprintf("u::%s,%sg::%s,%s%so::%s", r.permissions(), users, r.permissions(), groups, mask, r.permissions()))
}

func (r rights) permissions() string {
	return []string{"---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx", "r-x", "rwx"}[r.rng.IntN(10)]
}

func (r rights) set(n *treetest.Node) {
	dir := n.Type == treetest.Dir
	n.UID, n.GID, n.Mode = r.one(borderUsers), r.one(borderGroups), r.mode(dir)
	n.Xattrs = map[string]string{}
	if r.rng.IntN(3) == 0 {
		n.Xattrs["trusted.secret"] = "z"
	}
	if (dir || n.Type == treetest.File) && r.rng.IntN(3) == 0 {
		n.Xattrs["user.x"] = "y"
	}
	if n.Type != treetest.Symlink && r.rng.IntN(5) < 2 {
		n.Xattrs[treetest.AccessACL], n.Mode = r.acl(), 0
	}
	if dir && r.rng.IntN(3) == 0 {
		n.Xattrs[treetest.DefaultACL] = r.acl()
	}
}

// randomRights is a tree of objects of all types with random owners, modes and ACLs.
func randomRights(r rights, dirs, others int) []treetest.Node {
	var nodes []treetest.Node
	parents := []string{"random"}
	for i := range dirs {
		parent := parents[max(0, len(parents)-1-r.rng.IntN(12))] // rather deep than wide
		n := treetest.Node{Path: fmt.Sprintf("%s/d%d", parent, i), Type: treetest.Dir}
		r.set(&n)
		parents, nodes = append(parents, n.Path), append(nodes, n)
	}
	var files []string // what hard links may lead to
	for i := range others {
		dir := parents[r.rng.IntN(len(parents))]
		n := treetest.Node{Path: fmt.Sprintf("%s/%d", dir, i)}
		switch k := r.rng.IntN(12); {
		case k == 0:
			n.Type = treetest.FIFO
		case k == 1:
			n.Type = treetest.Socket
		case k == 2:
			n.Type, n.Major, n.Minor = treetest.Char, 1, 3 // null
		case k == 3:
			n.Type, n.Major, n.Minor = treetest.Block, 240, 7 // without a driver
		case k < 6 && len(files) > 0:
			n.Type, n.Target = treetest.Symlink, files[r.rng.IntN(len(files))]
		case k == 6 && len(files) > 0:
			nodes = append(nodes, treetest.Node{Path: n.Path, Type: treetest.HardLink, Target: files[r.rng.IntN(len(files))]})
			continue
		default:
			n.Data = []byte("secret of " + n.Path)
			files = append(files, n.Path)
		}
		r.set(&n)
		nodes = append(nodes, n)
	}
	return nodes
}

// change gives other rights to n of the paths.
func (r rights) change(paths []string, n int) {
	for range n {
		p := paths[r.rng.IntN(len(paths))]
		st, err := os.Lstat(p)
		must(r.t, err)
		switch k := r.rng.IntN(4); {
		case k == 0 || st.Mode().Type() == os.ModeSymlink:
			must(r.t, os.Lchown(p, int(r.one(borderUsers)), int(r.one(borderGroups))))
		case k == 1:
			must(r.t, unix.Setxattr(p, treetest.AccessACL, []byte(r.acl()), 0))
		case k == 2:
			if err := unix.Removexattr(p, treetest.AccessACL); err != unix.ENODATA {
				must(r.t, err)
			}
		default:
			must(r.t, unix.Chmod(p, r.mode(st.IsDir())&0o7777))
		}
	}
}

// changes are the questions of askChanges that do not depend on the type.
var changes = []string{"chown", "touch", "setxattr", "set ACL", "unlink", "rename", "link"}

// inMount returns what the mount is to answer where the source answers w: the
// same, but that nothing can be written and no device opened. Linux asks for the
// rights to the directories above a file first. Then it says EROFS to whoever wants to
// write a file, directory or symlink, without a look at its rights; a mount
// that is read-only does not keep anybody from writing into a FIFO.
func inMount(w answers) answers {
	m := maps.Clone(w)
	if w["lstat"] != "" {
		for _, change := range changes {
			m[change] = w["lstat"]
		}
		return m
	}
	for _, change := range changes {
		m[change] = "EROFS"
	}
	var mode uint32
	_, _ = fmt.Sscanf(w["attributes"], "%o", &mode) // 0, which is no type, where that fails
	if mode&unix.S_IFMT != unix.S_IFLNK {
		m["chmod"] = "EROFS"
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		m["write right"], m["open to write"], m["truncate"] = "EROFS", "EROFS", "EROFS"
	case unix.S_IFLNK:
		m["write right"] = "EROFS"
	case unix.S_IFDIR:
		m["write right"], m["create in"] = "EROFS", w["below"]
		if w["below"] == "ENOENT" {
			m["create in"] = "EROFS"
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		m["open to read"], m["open to write"], m["open without a trace"] = "EACCES", "EACCES", "EACCES"
	}
	return m
}

// inVersions returns what is to be answered about a version below ".versions". The
// directory of a path there is as closed as the path was, so who wants to see a
// version of a directory must have the right to enter it.
func inVersions(w answers) answers {
	m := inMount(w)
	if _, dir := w["below"]; !dir || w["below"] == "ENOENT" {
		return m
	}
	return inMount(noWay(w["below"]))
}

// noWay is the answers about what cannot be reached.
func noWay(errno string) answers {
	a := answers{}
	for _, question := range []string{"lstat", "read right", "write right", "execute right", "readlink", "xattrs",
		"open to read", "open to write", "open without a trace"} {
		a[question] = errno
	}
	return a
}

// place is where the paths of a source can be found.
type place struct {
	what  string
	paths []string                     // of the source
	at    func(path string) string     // where one of them is
	want  func(source answers) answers // what is to be said there
}

// testimony is what everybody is told about paths, by identity and path.
type testimony []map[string]answers

// hear lets everybody ask about all paths at all places. With try set, they try
// to change things there.
func hear(t *testing.T, try bool, places ...place) []testimony {
	t.Helper()
	said := make([]testimony, len(places))
	for _, who := range borderIdentities {
		var questions []string
		for _, place := range places {
			for _, p := range place.paths {
				question := place.at(p)
				if try {
					question = changed + question
				}
				questions = append(questions, question)
			}
		}
		all := who.ask(t, questions)
		for i, place := range places {
			found := map[string]answers{}
			for _, p := range place.paths {
				found[p] = all[fmt.Sprintf("%q", place.at(p))]
			}
			said[i] = append(said[i], found)
		}
	}
	return said
}

// wantSaid compares what everybody is told at a place with what the source
// says, and returns how many answers that were.
func wantSaid(t *testing.T, what string, place place, source, got testimony) (compared int) {
	t.Helper()
	for i, who := range borderIdentities {
		all := map[string]answers{}
		for _, p := range place.paths {
			all[p] = place.want(source[i][p])
			compared += len(all[p])
		}
		wantSameAnswers(t, fmt.Sprintf("%s %s, %s", what, place.what, who), all, got[i])
	}
	return compared
}

// wantTeeth fails the test unless people without privileges were let in and
// refused often.
func (said testimony) wantTeeth(t *testing.T) {
	t.Helper()
	for i, who := range borderIdentities {
		if who.uid == 0 || who.caps != "" {
			continue
		}
		in, refused := 0, 0
		for _, a := range said[i] {
			switch a["open to read"] {
			case "":
				in++
			case "EACCES":
				refused++
			}
		}
		if in < len(said[i])/10 || refused < len(said[i])/10 {
			t.Errorf("%s: %d of %d can be opened, and %d are refused: too few to compare (may others pass %s?)", who, in, len(said[i]), refused, testRoot)
		}
	}
}

// selection is a part of a tree, backed up by its absolute paths.
type selection struct {
	given     []string // paths
	below     []string // at and below them
	ancestors []string // above them, up to /
}

func selectSome(rng *rand.Rand, paths []string, n int) (s selection) {
	above := map[string]bool{}
	for len(s.given) < n {
		p := paths[rng.IntN(len(paths))]
		if strings.Count(p, "/") > strings.Count(paths[0], "/")+3 {
			s.given = append(s.given, p)
		}
	}
	for _, p := range paths {
		if slices.ContainsFunc(s.given, func(given string) bool { return p == given || strings.HasPrefix(p, given+"/") }) {
			s.below = append(s.below, p)
		}
	}
	for _, p := range s.given {
		for p != "/" {
			p = filepath.Dir(p)
			above[p] = !slices.Contains(s.below, p)
		}
	}
	for p, only := range above {
		if only {
			s.ancestors = append(s.ancestors, p)
		}
	}
	return s
}

// abovePart leaves out what is in a directory, of which the backup has only a part.
func abovePart(w answers) answers {
	m := inMount(w)
	delete(m, "readdir")
	return m
}

// TestBorder lets twenty people ask about everything in a tree of all
// combinations of rights, and of random ones: they get the same answers from the
// mount as from the source, but for what inMount says; in each of two generations
// between which rights changed, where only a part was backed up, and in
// ".versions".
func TestBorder(t *testing.T) {
	src := tempDir(t)
	some := rights{t, rand.New(rand.NewPCG(1, 4))}
	createTree(t, src, rightsTree(t))
	createTree(t, src, randomRights(some, 50, 110))
	paths := prefixed(src, readTree(t, src).Paths())
	part := selectSome(some.rng, paths, 8)
	r := newRepo(t)
	m := r.mount()

	itself := func(path string) string { return path }
	source := []place{{"source", paths, itself, nil}, {"above the part", part.ancestors, itself, nil}}
	generation := func() []place {
		whole, some := r.all(src), r.create(append([]string{"--source", "part"}, part.given...)...)
		root, partRoot := m.at(whole.Generation), m.at(filepath.Join("part", some.Generation))
		inPartRoot := func(p string) string { return filepath.Join(partRoot, p) }
		return []place{
			{"whole", paths, func(p string) string { return filepath.Join(root, strings.TrimPrefix(p, src)) }, inMount},
			{"part", part.below, inPartRoot, inMount},
			{"above the part", part.ancestors, inPartRoot, abovePart},
			{".versions", paths, func(p string) string { return m.path(".versions", strings.TrimPrefix(p, src), whole.Generation) }, inVersions},
		}
	}
	compared := 0
	compare := func(what string, places []place, source, got []testimony) {
		t.Helper()
		for i, place := range places {
			compared += wantSaid(t, what, place, source[[]int{0, 0, 1, 0}[i]], got[i])
		}
	}

	before, first := hear(t, false, source...), generation()
	before[0].wantTeeth(t)
	compare("first generation", first, before, hear(t, true, first...))

	some.change(paths, 200)
	after, second := hear(t, false, source...), generation()
	for _, place := range []*place{&first[0], &first[3], &second[3]} {
		if !soak() {
			place.paths = everyThird(paths)
		}
	}
	now := hear(t, true, append(second, first[0], first[3])...)
	compare("second generation", second[:3], after, now[:3])
	compare("first generation after the second", first[:1], before, now[4:5])
	wantNoMore(t, after[0], now[3])
	wantNoMore(t, before[0], now[5])
	t.Logf("%d paths, %d people, %d answers compared", len(paths)+len(part.ancestors), len(borderIdentities), compared)
}

func everyThird(paths []string) (some []string) {
	for i := 0; i < len(paths); i += 3 {
		some = append(some, paths[i])
	}
	return some
}

// wantNoMore fails the test where somebody gets more from a version than the
// source gave at the time. That he gets less is right, where the way to it was
// closed in another generation; but some must get something.
func wantNoMore(t *testing.T, source, versions testimony) {
	t.Helper()
	for i, who := range borderIdentities {
		seen := 0
		for p, got := range versions[i] {
			if got["lstat"] == "" {
				seen++
			}
			for _, question := range []string{"lstat", "read right", "execute right", "open to read", "execute"} {
				if answer, asked := got[question]; asked && answer == "" && source[i][p][question] != "" {
					t.Errorf("%s: %s of a version of %s, at the source %s", who, question, p, source[i][p][question])
				}
			}
		}
		if seen == 0 {
			t.Errorf("%s: sees no version of anything", who)
		}
	}
}
