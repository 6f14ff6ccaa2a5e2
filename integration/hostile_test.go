package integration

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// These tests give the programs repositories that somebody made to harm them: digests and
// chain are right, what they say is not. Whatever it is, a command ends with a line that says
// what is wrong, or does its work; it takes little memory and time. RLIMIT_AS holds
// it to hostileMemory, half of which the Go runtime reserves for itself.
const hostileMemory = 1 << 30

// hostileCPU is the CPU time, of user and system, that a command may take, or a mount while it is
// read: wall time would be that of all that runs on the machine.
const hostileCPU = time.Second

// hostileCPUOf has the bounds of those that are harmless, but long when they are decoded.
var hostileCPUOf = map[string]time.Duration{
	"1 GiB of zeros in 32 KiB":            6 * time.Second, // the mount, which hands them out, 3 s
	"the same part 400,000 times":         2 * time.Second, // 77 MB of lines
	"a million attributes of 1,000 files": 6 * time.Second, // check --read-data, which derives an index twice
	"directories 20,000 levels deep":      4 * time.Second, // 69 MB of paths before the first that is too long
	"directories of the longest path":     6 * time.Second, // 67 MB of paths
}

// outcome is what commands should make of a hostile repository.
type outcome struct {
	list, check, readData, create, reindex, mount int
	noLog                                         bool // there is no honest generation either
}

var (
	badConfig = outcome{1, 4, 4, 1, 1, 1, false}
	badLog    = outcome{4, 4, 4, 1, 1, 0, false}
	badIndex  = outcome{0, 4, 4, 0, 0, 0, false}
	badParts  = outcome{0, 4, 4, 0, 0, 0, false}
	badData   = outcome{0, 0, 4, 0, 0, 0, false}
	harmless  = outcome{0, 0, 0, 0, 0, 0, false}
	lostLog   = outcome{4, 4, 4, 1, 1, 0, true} // an empty one, but for the name that is taken
)

// hostile is a repository of one honest generation and what forge adds to it.
type hostile struct {
	name  string
	as    outcome
	want  string // in the message; "" where there is none
	forge func(f *forger)
}

// cpu is the CPU time that a command, or a mount, may take.
func (h hostile) cpu() time.Duration { return cmp.Or(hostileCPUOf[h.name], hostileCPU) }

// generationOf returns a forge that adds a generation of these lines.
func generationOf(body ...string) func(f *forger) {
	return func(f *forger) { f.record(f.header("generation"), body...) }
}

// headerOf returns a forge that adds an empty record whose header is another one.
func headerOf(kind string, replacements ...string) func(f *forger) {
	return func(f *forger) { f.record(f.header(kind, replacements...)) }
}

func hostileNames() []hostile {
	list := []hostile{
		{"a root that is a file", badLog, "the root is a file", generationOf(entry(".", "file"))},
		{"gone is ..", badLog, `bad path ".."`, generationOf(`{"gone":".."}`)},
		{"a path in base64", badLog, "base64 of what is UTF-8", generationOf(strings.Replace(entry("x", "file"), `"path":"x"`, `"path64":"Li4="`, 1))},
		{"a source with ..", badLog, `bad source name "../x"`, headerOf("generation", `"source":""`, `"source":"../x"`)},
		{"a source called latest", badLog, `bad source name "latest"`, headerOf("generation", `"source":""`, `"source":"latest"`)},
		{"a generation with ..", badLog, `bad generation name "../`, headerOf("generation", `"name":"`, `"name":"../`)},
		{"a generation with an hour of one digit", badLog, `bad generation name "2030-01-01T0-00-`, headerOf("generation", "T00-00-", "T0-00-")},
		{"a generation with a fraction", badLog, `,5Z"`, headerOf("generation", `Z","base"`, `,5Z","base"`)},
		{"a generation with a fraction of 2,000 digits", badLog, "bad generation name", headerOf("generation", `Z","base"`, ","+strings.Repeat("5", 2000)+`Z","base"`)},
		{"an attribute's name with a NUL", badLog, "bad extended attribute name", generationOf(with(entry("a", "file"), `"xattrs":[{"name":"user.a\u0000","value":""}]`))},
		{"a target with a NUL", badLog, "a symlink with the target", generationOf(with(entry("a", "symlink"), `"target":"a\u0000b"`))},
		{"a target of 1 MiB", badLog, "target has 1048576 bytes", generationOf(with(entry("a", "symlink"), `"target":"`+strings.Repeat("t", 1<<20)+`"`))},
	}
	for _, path := range []string{"..", "../../etc/passwd", "a/..", "/etc", "", "/", "a//b", "a/", `a\u0000b`, strings.Repeat("n", 300)} {
		list = append(list, hostile{fmt.Sprintf("the path %.20s", path), badLog, "bad path", generationOf(entry(path, "file"))})
	}
	return list
}

func hostileStructures() []hostile {
	const many = "1099511627776" // 2^40
	huge := func(path string) string { return entry(path, "file", `"size":0`, `"size":9223372036854775807`) }
	part := func(digit int, stored, raw, tail string) string {
		return fmt.Sprintf(`{"part":"%064d","stored":%s,"raw":%s,"tail":%s,"tail_digest":"%064d"}`, digit, stored, raw, tail, digit)
	}
	oneExtent := func(offset string) string {
		return with(entry("a", "file", `"size":0`, `"size":5`), fmt.Sprintf(`"data":[[%s,5,"%064d"]]`, offset, 1))
	}
	return []hostile{
		{"a path twice", badLog, "out of order", generationOf(entry("a", "file"), entry("a", "file"))},
		{"a file as a directory", badLog, "there is no directory", generationOf(entry("a", "file"), entry("a/b", "file"))},
		{"a field twice", badLog, "given twice", generationOf(with(entry("a", "file"), `"uid":1`))},
		{"two headers", badLog, "unknown field", generationOf(`{"kind":"generation"}`)},
		{"two ends", badLog, "lines after the last one", func(f *forger) { f.put(lines(f.header("generation") + counts(nil) + counts(nil))) }},
		{"an attribute twice", badLog, "bad extended attribute name", generationOf(with(entry("a", "file"), `"xattrs":[{"name":"user.a","value":""},{"name":"user.a","value":""}]`))},
		{"a part twice, with two sizes", badLog, "another size", generationOf(part(7, "2000", "1024", "1000"), part(7, "2001", "1024", "1000"))},
		{"its own base", badLog, "impossible base 2", headerOf("generation", `"base":1`, `"base":2`)},
		{"a base to come", badLog, "impossible base " + many, headerOf("generation", `"base":1`, `"base":`+many)},
		{"linked directories", badLog, "in a hard-link group", generationOf(with(entry("a", "dir"), `"group":"g"`))},
		{"it forgets itself", badLog, "not there yet", func(f *forger) { f.record(f.header("forget"), `{"forget":2}`) }},
		{"it forgets 2^40", badLog, "not there yet", func(f *forger) { f.record(f.header("forget"), `{"forget":`+many+`}`) }},
		{"it forgets twice", badLog, "forgotten already", func(f *forger) { f.record(f.header("forget"), `{"forget":1}`, `{"forget":1}`) }},
		{"a live part removed", badParts, "a compaction removed parts whose contents generations still need", func(f *forger) {
			part := (&repo{t: f.t, dir: f.dir}).parts()[0]
			f.record(f.header("compaction"), fmt.Sprintf(`{"removed":"%s"}`, filepath.Base(part)[:64]))
		}},
		{"2^40 entries", badLog, "Entries:" + many, func(f *forger) {
			f.put(lines(f.header("generation") + strings.Replace(counts(nil), `"entries":0`, `"entries":`+many, 1)))
		}},
		{"record 2^40", badLog, "2", func(f *forger) { write(f.t, filepath.Join(f.dir, "log", many+".jsonl.zst"), "x") }},
		{"a hard-link group of 300 bytes", badLog, "has 300 bytes", generationOf(with(entry("a", "file", `"nlink":1`, `"nlink":2`), `"group":"`+strings.Repeat("g", 300)+`"`))},
		{"2^40 links", badLog, many, generationOf(entry("a", "file", `"nlink":1`, `"nlink":`+many))},
		{"a size of 2^63", badLog, "9223372036854775808 is above", generationOf(entry("a", "file", `"size":0`, `"size":9223372036854775808`))},
		{"sizes that overflow", badLog, "overflows", generationOf(huge("a"), huge("b"))},
		{"an extent behind the end", badLog, "impossible extent: offset " + many, generationOf(oneExtent(many))},
		{"a content of no part", badLog, "which no record named", generationOf(oneExtent("0"))},
		{"a part of 2^40 bytes", badParts, "is missing", generationOf(part(7, many, "1024", "1000"))},
		{"a tail of 2^40 bytes", badParts, "is missing", generationOf(part(7, many+"1", "1024", many))},
		{"parts that overflow", badLog, "overflows", generationOf(part(7, "2000", "4611686018427387904", "1000"), part(8, "2000", "4611686018427387904", "1000"))},
	}
}

// forgedFile adds a part of frames, and a file of five bytes whose content it places there.
func forgedFile(offset int, frames ...forgedFrame) func(f *forger) {
	hash := archive.HashOf([]byte("hello"))
	file := with(entry("forged", "file", `"size":0`, `"size":5`), fmt.Sprintf(`"data":[[0,5,"%s"]]`, hash))
	return func(f *forger) {
		line, name, _ := f.part(frames...)
		f.record(f.header("generation"), line, content(hash, name, offset, 5), file)
	}
}

func hostileParts() []hostile {
	hello := frameOf(append(tarHeader("hello", 5), append([]byte("hello"), make([]byte, 507)...)...))
	var blocks []any
	for range 8192 { // 1 GiB
		blocks = append(blocks, filler(0))
	}
	truncated := func(f *forger) {
		forgedFile(512, hello)(f)
		for _, part := range (&repo{t: f.t, dir: f.dir}).parts() {
			must(f.t, os.Truncate(part, 1<<40))
		}
	}
	return []hostile{
		{"an honest part", harmless, "", forgedFile(512, hello)},
		{"a content behind the part", badLog, "is outside of the part", forgedFile(1<<40, hello)},
		{"a content over the end of the part", badLog, "is outside of the part", forgedFile(2048, hello)},
		{"a content at no block", badLog, "is no multiple of 512", forgedFile(100, hello)},
		{"a content at a header", badData, "its contents are not those that the log says", forgedFile(0, hello)},
		{"a content in the end frame", badData, "its contents are not those that the log says", forgedFile(1024, hello)},
		{"a frame that is smaller than the tail says", badData, "content size 1024, want 8388608", forgedFile(512, forgedFrame{hello.stored, 8 << 20})},
		{"a frame that is larger than it says", badData, "wrong frame", forgedFile(512, forgedFrame{zstdFrame(8<<20, 1, blocks...), 8 << 20})},
		{"two frames in one", badParts, "stored length 2088, want 1 to 1092", forgedFile(512, forgedFrame{append(hello.stored, hello.stored...), hello.raw})},
		{"no frame", badData, "wrong frame", forgedFile(512, forgedFrame{[]byte("hello"), 1024})},
		{"parts of 2^40 bytes", badParts, "the part has 1099511627776 bytes", truncated},
		{"1 GiB of zeros in 32 KiB", harmless, "", bomb},
	}
}

// bomb adds a file of 1 GiB whose part has 128 frames of 8 MiB of zeros.
func bomb(f *forger) {
	raw := make([]byte, 8<<20)
	blocks := make([]any, len(raw)/(128<<10))
	for i := range blocks {
		blocks[i] = filler(0)
	}
	zeros := forgedFrame{zstdFrame(len(raw), xxhash.Sum64(raw), blocks...), len(raw)}
	var frames []forgedFrame
	var extents []string
	hash := archive.HashOf(raw)
	for i := range 128 {
		frames = append(frames, frameOf(tarHeader("zeros", len(raw))), zeros)
		extents = append(extents, fmt.Sprintf(`[%d,%d,"%s"]`, i*len(raw), len(raw), hash))
	}
	line, name, _ := f.part(frames...)
	f.record(f.header("generation"), line, content(hash, name, 512, len(raw)),
		with(entry("forged", "file", `"size":0`, fmt.Sprintf(`"size":%d`, 128*len(raw))), `"data":[`+strings.Join(extents, ",")+`]`))
}

// fill returns the frame of n times 128 KiB of a byte.
func fill(c byte, n int) []byte {
	blocks := make([]any, n)
	for i := range blocks {
		blocks[i] = filler(c)
	}
	return stream(blocks...)
}

func hostileRecords() []hostile {
	const gib = 8192 // times 128 KiB
	const long = "it is longer than 16384 KiB"
	return []hostile{
		{"1 GiB of NULs", badLog, "line 1: it is longer than 64 KiB", func(f *forger) { f.put(fill(0, gib)) }},
		{"1 GiB of spaces", badLog, long, func(f *forger) { f.put(lines(f.header("generation")), fill(' ', gib)) }},
		{"1 GiB of empty lines", badLog, "want '{'", func(f *forger) { f.put(lines(f.header("generation")), fill('\n', gib)) }},
		{"spaces before each line", badLog, "want '{'", func(f *forger) {
			frames := [][]byte{lines(f.header("generation"))}
			n := gib / 127 / scale(4, 1)
			for i := range n {
				frames = append(frames, fill(' ', 127), lines(entry(fmt.Sprintf("a%03d", i), "file")+"\n"))
			}
			f.put(append(frames, lines(strings.Replace(counts(nil), `"entries":0`, fmt.Sprintf(`"entries":%d`, n), 1)))...)
		}},
		{"a program's name of 16 MiB", badLog, "line 1: it is longer than 64 KiB", func(f *forger) {
			before, after, _ := strings.Cut(f.header("generation"), "forger")
			f.put(lines(before), fill('f', 127), lines(after+counts(nil)))
		}},
		{"a path of 16 MiB", badLog, "bad path", func(f *forger) {
			before, after, _ := strings.Cut(entry("PATH", "file"), "PATH")
			f.put(lines(f.header("generation")+before), fill('f', 127), lines(after+"\n"+counts(nil)))
		}},
		{"the same part 400,000 times", harmless, "", func(f *forger) {
			line, _, _ := f.part(frameOf(tarHeader("empty", 0)))
			f.repeat(f.header("generation"), line, 400_000, "parts")
		}},
		{"the same part removed a million times", badLog, "removed already", func(f *forger) {
			line, name, _ := f.part(frameOf(tarHeader("empty", 0)))
			f.repeat(f.header("compaction")+line+"\n", fmt.Sprintf(`{"removed":"%s"}`, name), 1_000_000, "removed")
		}},
		{"forgotten a million times", badLog, "forgotten already", func(f *forger) {
			f.repeat(f.header("forget"), `{"forget":1}`, 1_000_000, "forgets")
		}},
		{"a million attributes of a file", badLog, long, func(f *forger) { f.attributes(1, 1_000_000) }},
		{"300,000 attributes of a file", badLog, "300000 extended attributes", func(f *forger) { f.attributes(1, 300_000) }},
		{"a million attributes of 1,000 files", harmless, "", func(f *forger) { f.attributes(1000, 1000) }},
		{"directories 20,000 levels deep", badLog, "it has 16642 bytes, want at most 16640", func(f *forger) { f.nest(20_000, "") }},
		{"directories of the longest path", harmless, "", func(f *forger) { f.nest(8192, strings.Repeat("n", 255)) }},
		{"an attribute of 70,000 bytes", badLog, "of 70000 bytes", generationOf(with(entry("a", "file"), `"xattrs":[{"name":"user.a","value":"`+strings.Repeat("v", 70_000)+`"}]`))},
	}
}

// repeat makes a record of a line that comes n times; of is what its counts call it.
func (f *forger) repeat(header, line string, n int, of string) {
	end := strings.Replace(counts(nil), fmt.Sprintf(`%q:0`, of), fmt.Sprintf(`%q:%d`, of, n), 1)
	f.put(compressed(f.t, header+strings.Repeat(line+"\n", n)+end))
}

// nest adds directories, each in the one before: the path of each has two bytes more. In the last
// one is a file, if it has a name. 20,000 of them have 400 MB of paths, in a record of some KB.
func (f *forger) nest(levels int, file string) {
	f.t.Helper()
	path := "a" + strings.Repeat("a/", levels)
	before, after, _ := strings.Cut(entry("PATH", "dir")+"\n", "PATH")
	header, n := f.header("generation"), levels
	if file != "" {
		n++
		file = entry(path[:2*levels]+"/"+file, "file") + "\n"
	}
	end := file + strings.Replace(counts(nil), `"entries":0`, fmt.Sprintf(`"entries":%d`, n), 1)
	text, in := io.Pipe()
	go func() {
		b := bufio.NewWriter(in)
		b.WriteString(header)
		for i := range levels {
			b.WriteString(before)
			b.WriteString(path[:2*i+2])
			b.WriteString(after)
		}
		b.WriteString(end)
		in.CloseWithError(b.Flush())
	}()
	cmd := exec.Command("zstd", "-c")
	cmd.Stdin = text
	f.put([]byte(runCmd(f.t, cmd).stdout))
}

// attributes adds files with so many extended attributes each.
func (f *forger) attributes(files, each int) {
	var list, text strings.Builder
	for i := range each {
		fmt.Fprintf(&list, `,{"name":"user.%06x","value":""}`, i)
	}
	for i := range files {
		text.WriteString(with(entry(fmt.Sprintf("f%04d", i), "file"), `"xattrs":[`+list.String()[1:]+`]`) + "\n")
	}
	f.put(compressed(f.t, f.header("generation")+text.String()+strings.Replace(counts(nil), `"entries":0`, fmt.Sprintf(`"entries":%d`, files), 1)))
}

// compressed returns what zstd makes of a text.
func compressed(t *testing.T, text string) []byte {
	t.Helper()
	cmd := exec.Command("zstd", "-c")
	cmd.Stdin = strings.NewReader(text)
	return []byte(runCmd(t, cmd).stdout)
}

// hostileFiles puts what is no file, or has no end, in the place of files.
func hostileFiles() []hostile {
	var list []hostile
	for _, file := range []struct {
		name   string
		as     outcome
		sparse string // what is said of one of 2^40 bytes
	}{
		{"repo.json", badConfig, "1099511627776 bytes"},
		{"log/000000000001.jsonl.zst", lostLog, ""},
		{"index/000000000001/seal.json", badIndex, "seal.json is too long"},
		{"index/000000000001/MANIFEST", badIndex, "MANIFEST has 1099511627776 bytes"},
		{"index/swept", harmless, ""},
	} {
		replace := func(with func(f *forger, path string)) func(f *forger) {
			return func(f *forger) {
				path := filepath.Join(f.dir, file.name)
				must(f.t, os.RemoveAll(path))
				with(f, path)
			}
		}
		want := filepath.Base(file.name)
		switch file.as {
		case lostLog:
			want = "record"
		case harmless:
			want = ""
		}
		list = append(list,
			hostile{"a FIFO as " + file.name, file.as, want, replace(func(f *forger, path string) { must(f.t, unix.Mkfifo(path, 0o600)) })},
			hostile{"/dev/zero as " + file.name, file.as, want, replace(func(f *forger, path string) { must(f.t, os.Symlink("/dev/zero", path)) })},
			hostile{"a directory as " + file.name, file.as, want, replace(func(f *forger, path string) { must(f.t, os.Mkdir(path, 0o700)) })})
		if file.as != lostLog { // of a record, the digest is wanted as well
			list = append(list, hostile{"2^40 bytes as " + file.name, file.as, file.sparse, replace(func(f *forger, path string) {
				write(f.t, path, "")
				must(f.t, os.Truncate(path, 1<<40))
			})})
		}
	}
	return list
}

// TestHostileRepositories runs the commands, and a mount, on repositories that are made
// to harm them.
func TestHostileRepositories(t *testing.T) {
	base := tmpfs(t, 2<<30)
	src := mkdir(t, base, "src")
	write(t, filepath.Join(src, "file"), "content")
	template := filepath.Join(base, "template")
	run(t, mkbackup, "init", template)
	run(t, mkbackup, "create", "-q", template, "--root", src, "/")
	attempt := func(h hostile, i int) *hostileRun {
		dir := filepath.Join(base, "repo")
		run(t, "cp", "-a", template, dir)
		h.forge(&forger{t, dir})
		v := &hostileRun{t: t, hostile: h, dir: dir, src: src}
		v.commands(soak(), i)
		if soak() || i%4 == 0 || h.as != badLog {
			v.mount(mkdir(t, base, "mnt"))
		}
		must(t, os.RemoveAll(dir))
		return v
	}
	var slowest []string
	tried := 0
	for _, list := range [][]hostile{hostileNames(), hostileStructures(), hostileParts(), hostileRecords(), hostileFiles()} {
		for i, h := range list {
			v := attempt(h, i)
			for try := 1; try < 3 && v.slowest > h.cpu(); try++ { // what else the machine does can only add
				if again := attempt(h, i); again.slowest < v.slowest {
					v = again
				}
			}
			tried++
			switch spent := fmt.Sprintf("%s: %v", v.slowestAt, v.slowest.Round(time.Millisecond)); {
			case v.slowest > h.cpu():
				t.Errorf("%s of CPU time in the best of three attempts, at most %v is wanted", spent, h.cpu())
			case v.slowest > hostileCPU/2:
				slowest = append(slowest, spent)
			}
		}
	}
	t.Logf("%d hostile repositories; more than half a second of CPU time took:\n%s", tried, strings.Join(slowest, "\n"))
}

// hostileRun is what the programs make of a hostile repository.
type hostileRun struct {
	t *testing.T
	hostile
	dir, src  string
	slowest   time.Duration // CPU time of a command
	slowestAt string
}

// commands runs all commands, or a share of them, which differs with n.
func (v *hostileRun) commands(all bool, n int) {
	v.t.Helper()
	v.command(v.as.check, "check")
	v.command(v.as.readData, "check", "--read-data")
	v.command(v.as.list, "list")
	if all && v.as != lostLog {
		v.command(v.as.list, "ls", "latest")
		v.command(anyCode, "export", "latest")
	}
	if all || n%2 == 0 || v.as == lostLog {
		v.command(v.as.create, "create", "-q", "--root", v.src, "/")
	}
	if (all || n%2 == 1) && v.as != lostLog { // which is, like that, an empty one
		v.command(v.as.reindex, "reindex")
	}
}

// limited returns a command that has little memory.
func limited(name string, args ...string) *exec.Cmd {
	return exec.Command("prlimit", append([]string{fmt.Sprintf("--as=%d", hostileMemory), name}, args...)...)
}

// anyCode stands for any of the exit codes that commands have: 0 to 4. runCmd has 128 and
// more for a death by a signal.
const anyCode = -1

// command runs a command, which must end with code.
func (v *hostileRun) command(code int, command string, args ...string) {
	v.t.Helper()
	cmd := limited(mkbackup, append([]string{command, v.dir}, args...)...)
	cmd.Stdout = new(countingWriter)
	r := runCmd(v.t, cmd)
	what := fmt.Sprintf("%s: %s %s", v.name, command, strings.Join(args, " "))
	wantNoCrash(v.t, what, r.stderr)
	if code == anyCode && r.code > 4 || code != anyCode && r.code != code {
		v.t.Errorf("%s: exit code %d, want %d\n%s", what, r.code, code, tail(r.stderr))
	}
	if code > 0 && !strings.Contains(r.stderr, v.want) {
		v.t.Errorf("%s: it does not say %q: %s", what, v.want, tail(r.stderr))
	}
	if message := r.stderr; r.code == 1 {
		if _, behind, told := strings.Cut(message, "this run goes on from there\n"); told {
			message = behind // create names the damage before it fails
		}
		wantOneLine(v.t, message)
	}
	if len(r.stderr) > 4000 {
		v.t.Errorf("%s: a message of %d bytes", what, len(r.stderr))
	}
	v.spent(what, time.Duration(r.usage.Utime.Nano()+r.usage.Stime.Nano()))
}

// countingWriter takes what nobody reads.
type countingWriter int

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}

func (v *hostileRun) spent(what string, cpu time.Duration) {
	if cpu > v.slowest {
		v.slowest, v.slowestAt = cpu, what
	}
}

// mount mounts the repository and reads what can be read: the honest generation is whole.
func (v *hostileRun) mount(dir string) {
	v.t.Helper()
	r := runCmd(v.t, limited(backupfs, "--cache-size", "16MiB", v.dir, dir))
	wantNoCrash(v.t, v.name, r.stderr)
	if r.code != v.as.mount {
		v.t.Errorf("%s: backupfs: exit code %d, want %d\n%s", v.name, r.code, v.as.mount, tail(r.stderr))
	}
	if r.code != 0 {
		wantOneLine(v.t, r.stderr, v.want)
		return
	}
	if v.as == badLog && !strings.Contains(r.stderr, v.want) {
		v.t.Errorf("%s: backupfs does not say %q: %s", v.name, v.want, tail(r.stderr))
	}
	m := &fuseMount{t: v.t, dir: dir}
	defer m.stop()
	pids := daemons(v.t, dir)
	names, err := filepath.Glob(filepath.Join(dir, "20*", "*"))
	must(v.t, err)
	honest := 0
	for _, name := range names[:min(len(names), 20)] {
		cmd := exec.Command("sh", "-c", `ls -l "$1"; getfattr -d -m - "$1"; head -c 2000000000 "$1" | tail -c 7`, "sh", name)
		if r := runCmd(v.t, cmd); strings.HasSuffix(r.stdout, "content") {
			honest++
		}
	}
	if want := v.as != badIndex && v.as != badParts && v.as != lostLog; want && honest == 0 {
		v.t.Errorf("%s: the honest file cannot be read in the mount: %q", v.name, names)
	}
	if now := daemons(v.t, dir); len(now) != 1 || len(pids) != 1 || now[0] != pids[0] {
		v.t.Errorf("%s: the daemon has died: %v, %v", v.name, pids, now)
	} else {
		v.spent(v.name+": mount", processCPU(v.t, now[0]))
	}
}

// processCPU returns the CPU time, of user and system, that a process has taken (proc_pid_stat(5)).
func processCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from the third, the state
	user, err := strconv.Atoi(fields[14-3])
	must(t, err)
	system, err := strconv.Atoi(fields[15-3])
	must(t, err)
	const tick = time.Second / 100 // USER_HZ
	return time.Duration(user+system) * tick
}
