// Package churn makes up a server whose files change as those of a real one do, day
// by day, for benchmarks and tests of years of backups.
package churn

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// Server is a made-up server: most of its bytes never change; logs grow and are
// rotated every week; databases change in place, some pages far more often than
// others; mail arrives, and most of it is deleted within weeks. The same calls make
// the same tree. It is used by one goroutine.
type Server struct {
	static int // files that never change
	pages  int // of each database
	random *rand.Rand
	mails  []mail
}

type mail struct {
	path string
	dies int // day on which it is deleted; 0: never
}

const (
	staticBytes = 24 << 10 // mean of a static file
	databases   = 4
	page        = 4 << 10
	writes      = 20 // of pages, to each database, a day
	logs        = 12
	mailsPerDay = 25
)

// NewServer returns a server with so many files that never change, of 24 KiB in the
// mean, and four databases of so many pages of 4 KiB.
func NewServer(static, pages int) *Server {
	return &Server{static: static, pages: pages, random: rand.New(rand.NewPCG(1, 2))}
}

// Apply makes the tree at dir what it is on a day. The days come in order, from 0.
func (s *Server) Apply(dir string, day int) error {
	if day == 0 {
		if err := s.install(dir); err != nil {
			return err
		}
	}
	for _, change := range []func(string, int) error{s.growLogs, s.writeDatabases, s.deliverMail} {
		if err := change(dir, day); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) install(dir string) error {
	for i := range s.static {
		size := int(s.random.ExpFloat64() * staticBytes)
		if err := write(filepath.Join(dir, "usr", fmt.Sprint(i%60), fmt.Sprint(i)), s.text(size)); err != nil {
			return err
		}
	}
	for d := range databases {
		var data []byte
		for range s.pages {
			data = append(data, s.page()...)
		}
		if err := write(filepath.Join(dir, "var/lib/db", fmt.Sprint("table", d)), data); err != nil {
			return err
		}
	}
	return nil
}

// growLogs appends to every log and rotates all of them once a week, four deep.
func (s *Server) growLogs(dir string, day int) error {
	for i := range logs {
		log := filepath.Join(dir, "var/log", fmt.Sprintf("log%d", i))
		if day%7 == 0 {
			for age := 4; age > 0; age-- {
				older, newer := fmt.Sprintf("%s.%d", log, age), fmt.Sprintf("%s.%d", log, age-1)
				if age == 1 {
					newer = log
				}
				if err := os.Rename(newer, older); err != nil && !os.IsNotExist(err) {
					return err
				}
			}
		}
		if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		if _, err := f.Write(s.text(1 << (10 + i%8))); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// writeDatabases overwrites pages, of which a few are hot (Zipf).
func (s *Server) writeDatabases(dir string, _ int) error {
	hot := rand.NewZipf(s.random, 1.2, 4, uint64(s.pages-1))
	for d := range databases {
		f, err := os.OpenFile(filepath.Join(dir, "var/lib/db", fmt.Sprint("table", d)), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for range writes {
			place := (hot.Uint64()*2654435761 + uint64(d)) % uint64(s.pages)
			if _, err := f.WriteAt(s.page(), int64(place)*page); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// deliverMail adds mails, a fifth of which stay for good, and deletes those
// whose day has come.
func (s *Server) deliverMail(dir string, day int) error {
	kept := s.mails[:0]
	for _, m := range s.mails {
		if m.dies != day {
			kept = append(kept, m)
			continue
		}
		if err := os.Remove(filepath.Join(dir, m.path)); err != nil {
			return err
		}
	}
	s.mails = kept
	for i := range mailsPerDay {
		m := mail{path: fmt.Sprintf("var/mail/user%d/cur/%d.%d", i%5, day, i)}
		if s.random.IntN(5) > 0 {
			m.dies = day + 1 + int(s.random.ExpFloat64()*14)
		}
		if err := write(filepath.Join(dir, m.path), s.text(2<<10+int(s.random.ExpFloat64()*6144))); err != nil {
			return err
		}
		s.mails = append(s.mails, m)
	}
	return nil
}

// text returns bytes that compress to about a third.
func (s *Server) text(size int) []byte {
	const letters = "etaoinshrdlucmfw"
	b := make([]byte, size)
	for i := range b {
		b[i] = letters[min(s.random.IntN(16), s.random.IntN(16))]
	}
	return b
}

// page returns a page of a database: half of it text, half of it zeros.
func (s *Server) page() []byte {
	return append(s.text(page/2), bytes.Repeat([]byte{0}, page/2)...)
}

func write(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o644)
}

// stamped marks a time that Stamp gave: the kernel hardly ever gives it.
const stamped = 123456789

// Stamp gives every file below dir that was changed since the last call the time at:
// what the kernel gave it is the time at which the history is replayed.
func Stamp(dir string, at time.Time) error {
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.ModTime().Nanosecond() == stamped {
			return err
		}
		return os.Chtimes(path, at, at.Truncate(time.Second).Add(stamped))
	})
}
