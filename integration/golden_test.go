package integration

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestGoldenRepository reads repositories as released versions wrote them. They
// are read for ever: what is in testdata never changes and never goes.
func TestGoldenRepository(t *testing.T) {
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	shell(t, `cp -r "$1" "$2"`, "testdata/repository-1", r.dir)
	c, _ := r.checkJSON(0, "--read-data")
	if c.Generations != 3 || c.Parts != 2 || c.ReadParts != 2 || c.ReadBytes != 249+1758 {
		t.Errorf("%+v", c)
	}
	if got := strings.Join(r.generations(), " "); got != "2026-11-21T03-00-00Z 2026-11-22T03-00-00Z 2026-11-22T04-00-00Z" {
		t.Errorf("generations %q", got)
	}
	m := r.mount()
	first := `./dir/hard|f|4755|0:0|2||6
./dir/link|l|777|0:0|1|../hello|8
./dir/\377|f|644|0:0|1||10
./dir|d|1777|0:0|2||
./empty|f|644|1000:1001|1||0
./fifo|p|600|0:0|1||0
./hello|f|4755|0:0|2||6
./large|f|644|0:0|1||2097152
./sparse|f|644|0:0|1||3145728
./whiteout|c|644|0:0|1||0
.|d|755|0:0|3||
`
	wantListing(t, "first", shell(t, goldenList, m.path("2026-11-21T03-00-00Z")), first)
	second := strings.NewReplacer("./fifo|p|600|0:0|1||0\n", "", "||6\n", "||12\n").Replace(first)
	wantListing(t, "second", shell(t, goldenList, m.path("latest")), second)
	third := `./dir/hard|f|4755|0:0|2||12
./dir/link|l|777|0:0|1|../hello|8
./dir/\377|f|644|0:0|1||10
./dir|d|1777|0:0|2||
.|d|755|0:0|3||
`
	wantListing(t, "third", shell(t, goldenList, m.path("web1", "2026-11-22")), third)

	wantContent(t, m.path("2026-11-21", "hello"), "hello\n")
	wantContent(t, m.path("2026-11-22", "dir", "hard"), "hello again\n")
	wantContent(t, m.path("latest", "dir", "\xff"), "not UTF-8\n")
	sums := shell(t, `cd "$1"; sha256sum sparse large`, m.path("latest"))
	if want := "008b5661cb540d2610c9c35a7c3fc5516585cc76a090937033b61e9a4b5066e4  sparse\n" +
		"4ac0b4c4070b5afa9836ef025c24d75ed44738c07c4b7309618ef3dca18029bf  large\n"; sums != want {
		t.Errorf("sums\n%swant\n%s", sums, want)
	}
	if got := shell(t, `cd "$1"; getfattr --only-values -n user.comment empty; stat -c ' %y' sparse; stat -c %t:%T whiteout`, m.path("latest")); got != "golden 2026-11-20 03:00:00.123456789 +0000\n0:0\n" {
		t.Errorf("attributes %q", got)
	}
}

const goldenList = `cd "$1"; find . -printf '%p|%y|%m|%U:%G|%n|%l' \( -type d -printf '|\n' -o -printf '|%s\n' \) | LC_ALL=C sort`

// TestGoldenCheckpoint reads what was left of repository-1 after its first generation
// was dropped, and a compaction had made a checkpoint.
func TestGoldenCheckpoint(t *testing.T) {
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	shell(t, `cp -r "$1" "$2"`, "testdata/repository-1-checkpoint", r.dir)
	c, _ := r.checkJSON(0, "--read-data")
	if c.Generations != 2 || c.Parts != 2 || c.ReadBytes != 249+1720 {
		t.Errorf("%+v", c)
	}
	if got := strings.Join(r.generations(), " "); got != "2026-11-22T03-00-00Z 2026-11-22T04-00-00Z" {
		t.Errorf("generations %q", got)
	}
	m := r.mount()
	wantListing(t, "second", shell(t, goldenList, m.path("latest")), `./dir/hard|f|4755|0:0|2||12
./dir/link|l|777|0:0|1|../hello|8
./dir/\377|f|644|0:0|1||10
./dir|d|1777|0:0|2||
./empty|f|644|1000:1001|1||0
./hello|f|4755|0:0|2||12
./large|f|644|0:0|1||2097152
./sparse|f|644|0:0|1||3145728
./whiteout|c|644|0:0|1||0
.|d|755|0:0|3||
`)
	if got := shell(t, `cd "$1"; stat -c %i hello dir/hard empty sparse; cat hello; getfattr --only-values -n user.comment empty`, m.path("latest")); got != "278\n278\n267\n272\nhello again\ngolden" {
		t.Errorf("inode numbers, a content and an attribute: %q", got)
	}
	wantContent(t, m.path("web1", "2026-11-22", "dir", "hard"), "hello again\n")
	sums := shell(t, `cd "$1"; sha256sum sparse large`, m.path("latest"))
	if want := "008b5661cb540d2610c9c35a7c3fc5516585cc76a090937033b61e9a4b5066e4  sparse\n" +
		"4ac0b4c4070b5afa9836ef025c24d75ed44738c07c4b7309618ef3dca18029bf  large\n"; sums != want {
		t.Errorf("sums\n%swant\n%s", sums, want)
	}
}

func wantListing(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.ReplaceAll(got, "\xff", `\377`) != want {
		t.Errorf("%s generation:\n%swant\n%s", what, got, want)
	}
}
