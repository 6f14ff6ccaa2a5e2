package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// server is a made-up server, a fiftieth of a small real one: 90% of its bytes
// never change; logs grow and are rotated every week; databases change in place,
// some pages far more often than others; mail arrives, and most of it is deleted
// within weeks.
type server struct {
	random *rand.Rand
	start  time.Time
	mails  []mail
}

type mail struct {
	path string
	dies int // day on which it is deleted; 0: never
}

const (
	staticFiles   = 6000
	staticBytes   = 24 << 10 // mean of a static file
	databases     = 4
	databasePages = 1024 // of each
	page          = 4 << 10
	logs          = 12
	mailsPerDay   = 25
)

func newServer() *server {
	return &server{random: rand.New(rand.NewPCG(1, 2)), start: time.Date(2025, 1, 1, 3, 0, 0, 0, time.UTC)}
}

func (s *server) name() string { return "server" }

func (s *server) steps() int { return 365 }

func (s *server) time(day int) time.Time { return s.start.AddDate(0, 0, day) }

// apply makes the tree at dir what it is on a day; the days come in order.
func (s *server) apply(dir string, day int) error {
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

func (s *server) install(dir string) error {
	for i := range staticFiles {
		size := int(s.random.ExpFloat64() * staticBytes)
		if err := write(filepath.Join(dir, "usr", fmt.Sprint(i%60), fmt.Sprint(i)), s.text(size)); err != nil {
			return err
		}
	}
	for d := range databases {
		var data []byte
		for range databasePages {
			data = append(data, s.page()...)
		}
		if err := write(filepath.Join(dir, "var/lib/db", fmt.Sprint("table", d)), data); err != nil {
			return err
		}
	}
	return nil
}

// growLogs appends to every log and rotates all of them once a week, four deep.
func (s *server) growLogs(dir string, day int) error {
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
func (s *server) writeDatabases(dir string, _ int) error {
	hot := rand.NewZipf(s.random, 1.2, 4, databasePages-1)
	for d := range databases {
		f, err := os.OpenFile(filepath.Join(dir, "var/lib/db", fmt.Sprint("table", d)), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for range 20 {
			place := (hot.Uint64()*2654435761 + uint64(d)) % databasePages
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
func (s *server) deliverMail(dir string, day int) error {
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
func (s *server) text(size int) []byte {
	const letters = "etaoinshrdlucmfw"
	b := make([]byte, size)
	for i := range b {
		b[i] = letters[min(s.random.IntN(16), s.random.IntN(16))]
	}
	return b
}

// page returns a page of a database: half of it text, half of it zeros.
func (s *server) page() []byte {
	return append(s.text(page/2), bytes.Repeat([]byte{0}, page/2)...)
}

func write(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o644)
}
