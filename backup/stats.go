package backup

import (
	"fmt"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// RepositoryStats are the figures of a repository.
type RepositoryStats struct {
	Generations     int     `json:"generations"`
	Sources         int     `json:"sources"`
	GenerationBytes int64   `json:"generation_bytes"` // raw bytes of the files of all generations, each link counted, holes included
	Contents        int64   `json:"contents"`
	ContentBytes    int64   `json:"content_bytes"` // raw bytes of the contents, each once
	Parts           int     `json:"parts"`         // that are there
	RawBytes        int64   `json:"raw_bytes"`     // of their tar streams
	StoredBytes     int64   `json:"stored_bytes"`  // of the files that they are
	DeadBytes       int64   `json:"dead_bytes"`    // of these, those that no generation needs or is going to, estimated
	LogBytes        int64   `json:"log_bytes"`     // stored
	IndexBytes      int64   `json:"index_bytes"`   // stored
	Deduplication   float64 `json:"deduplication"` // GenerationBytes / ContentBytes; 0 where there are none
	Compression     float64 `json:"compression"`   // RawBytes / StoredBytes; 0 where there are none
}

// Stats counts what a repository holds. It goes through all that the index knows, as
// index.DB.Live does, and reads no part. The error wraps index.ErrDamaged where the index contradicts itself.
func Stats(repo *archive.Repository, db *index.DB) (RepositoryStats, error) {
	var s RepositoryStats
	gens, err := db.Generations()
	if err != nil {
		return s, err
	}
	sources := make(map[string]bool)
	for _, g := range gens {
		sources[g.Source] = true
		s.GenerationBytes += g.Raw
	}
	s.Generations, s.Sources = len(gens), len(sources)
	if err := s.countContents(repo, db); err != nil {
		return s, err
	}
	if err := s.countStore(repo.Store(), db); err != nil {
		return s, err
	}
	if s.IndexBytes, err = index.StoredBytes(repo); err != nil {
		return s, err
	}
	s.Deduplication = ratio(s.GenerationBytes, s.ContentBytes)
	s.Compression = ratio(s.RawBytes, s.StoredBytes)
	return s, nil
}

// countContents counts what lies in the parts, and what of them nothing needs. A
// part that is damaged counts as needed: check reports it.
func (s *RepositoryStats) countContents(repo *archive.Repository, db *index.DB) error {
	u, err := measure(repo, db, func(error) {})
	if err != nil {
		return err
	}
	s.Contents, s.DeadBytes = u.index.Contents, u.dead
	for _, p := range u.parts {
		for _, content := range p.spans {
			s.ContentBytes += int64(content.rawLen)
		}
	}
	return nil
}

// countStore counts the parts that are there and that the log names, and the log.
func (s *RepositoryStats) countStore(store archive.Store, db *index.DB) error {
	there := make(map[archive.Digest]bool)
	for object, err := range store.List("parts/") {
		if err != nil {
			return fmt.Errorf("list the parts: %w", err)
		}
		if name, ok := archive.ParsePartStoreName(object.Name); ok {
			there[name] = true
		}
	}
	for object, err := range store.List("log/") {
		if err != nil {
			return fmt.Errorf("list the log: %w", err)
		}
		s.LogBytes += object.Stored
	}
	return db.Parts(func(p archive.Part) bool {
		if there[p.Name] {
			s.Parts++
			s.RawBytes += p.Raw
			s.StoredBytes += p.Stored
		}
		return true
	})
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
