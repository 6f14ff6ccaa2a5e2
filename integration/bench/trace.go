package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// partRead is one read of stored bytes from a part.
type partRead struct {
	path   string
	offset int64
	length int64
}

// traced are the system calls by which a program could get at the bytes of a file.
const traced = "read,readv,pread64,preadv,preadv2,mmap,splice,sendfile,copy_file_range"

// traceParts returns what the process reads from parts while do runs. strace
// writes files whose names begin with output.
func traceParts(pid int, output string, do func() error) ([]partRead, error) {
	cmd := exec.Command("strace", "-ff", "-y", "-s", "0", "-e", "trace="+traced, "-o", output, "-p", strconv.Itoa(pid))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("strace: %w", err)
	}
	said := bufio.NewReader(stderr)
	line, err := said.ReadString('\n') // "Process 7 attached with 12 threads"
	if err == nil && !strings.Contains(line, "attached") {
		err = errors.New(strings.TrimSpace(line))
	}
	if err == nil {
		go io.Copy(io.Discard, said) //nolint:errcheck // of no interest
		err = do()
	}
	err = errors.Join(err, cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait() // it ends by the signal
	if err != nil {
		return nil, fmt.Errorf("trace process %d: %w", pid, err)
	}
	return readTraces(output)
}

func readTraces(output string) (reads []partRead, err error) {
	files, err := filepath.Glob(output + ".*")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		some, err := parseTrace(string(text))
		if err != nil {
			return nil, err
		}
		reads = append(reads, some...)
	}
	return reads, nil
}

// parseTrace returns the reads of parts among the lines of one thread. Whatever
// else a thread does to a part is an error: it would not be counted.
func parseTrace(text string) (reads []partRead, err error) {
	pread := regexp.MustCompile(`^pread64\(\d+<(.+\.tar\.zst)>, .*, \d+, (\d+)\) += (\d+)$`)
	for line := range strings.Lines(text) {
		if !strings.Contains(line, ".tar.zst>") {
			continue
		}
		m := pread.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			return nil, fmt.Errorf("a part is read in a way that is not counted: %s", line)
		}
		r := partRead{path: m[1]}
		if r.offset, err = strconv.ParseInt(m[2], 10, 64); err != nil {
			return nil, err
		}
		if r.length, err = strconv.ParseInt(m[3], 10, 64); err != nil {
			return nil, err
		}
		reads = append(reads, r)
	}
	return reads, nil
}

// frameCount says what reads of parts came to.
type frameCount struct {
	frames    int   // those that reads touched; twice where two reads touched one
	bytes     int64 // stored, outside of tails
	tailBytes int64
}

func countFrames(reads []partRead) (c frameCount, err error) {
	ends := map[string][]int64{}
	for _, r := range reads {
		if ends[r.path] == nil {
			if ends[r.path], err = frameEndsOf(r.path); err != nil {
				return c, err
			}
		}
		c.add(r, ends[r.path])
	}
	return c, nil
}

// add counts a read of a part whose frames end at the given stored offsets.
func (c *frameCount) add(r partRead, ends []int64) {
	if r.length == 0 {
		return
	}
	if r.offset >= ends[len(ends)-1] {
		c.tailBytes += r.length
		return
	}
	first := sort.Search(len(ends), func(i int) bool { return ends[i] > r.offset })
	last := sort.Search(len(ends), func(i int) bool { return ends[i] >= r.offset+r.length })
	c.frames += min(last, len(ends)-1) - first + 1
	c.bytes += r.length
}

func frameEndsOf(part string) ([]int64, error) {
	f, err := os.Open(part)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	ends, err := frameEnds(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("seek table of %s: %w", part, err)
	}
	return ends, nil
}

// frameEnds returns the stored offset of the end of each frame of a part, but
// for those of the tail, from its seek table: docs/FORMAT.md, section 2.3.
func frameEnds(part io.ReaderAt, stored int64) ([]int64, error) {
	const footer, entry, magic = 9, 8, 0x8F92EAB1
	last := make([]byte, footer)
	if _, err := part.ReadAt(last, stored-footer); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(last))
	if binary.LittleEndian.Uint32(last[5:]) != magic || n < 2 || n*entry > stored-footer {
		return nil, errors.New("not a seek table")
	}
	table := make([]byte, n*entry)
	if _, err := part.ReadAt(table, stored-footer-n*entry); err != nil {
		return nil, err
	}
	ends := make([]int64, n-1) // the last entry is that of the digests
	var end int64
	for i := range ends {
		end += int64(binary.LittleEndian.Uint32(table[i*entry:]))
		ends[i] = end
	}
	return ends, nil
}
