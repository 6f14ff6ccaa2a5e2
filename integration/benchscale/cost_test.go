package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func someCosts() []cost {
	return []cost{
		{at: 1000, create: time.Second, unchanged: 50 * time.Millisecond, ready: 10 * time.Millisecond, find: 100 * time.Millisecond},
		{at: 100_000, create: 100 * time.Second, unchanged: 5 * time.Second, ready: 20 * time.Millisecond, find: 10 * time.Second, publish: 12345 * time.Microsecond},
	}
}

func TestTSV(t *testing.T) {
	want := "files\tfirst create, s\tfind through the mount, cold, s\tcreate, nothing changed, s\tmount ready, s\tindex of changes published, s\n" +
		"1000\t1.0000\t0.1000\t0.0500\t0.0100\t0.0000\n" +
		"100000\t100.0000\t10.0000\t5.0000\t0.0200\t0.0123\n"
	if got := tsv("files", someCosts()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestAxis(t *testing.T) {
	a := newAxis([]float64{0, 0.02, 50}, 400, 0) // 0.001 to 100: 80 pixels for a power of ten
	for v, want := range map[float64]float64{0: 400, 0.0001: 400, 0.001: 400, 0.1: 240, 1: 160, 100: 0} {
		if got := a.at(v); got < want-0.001 || got > want+0.001 {
			t.Errorf("%g lies at %g, want %g", v, got, want)
		}
	}
	if one := newAxis([]float64{1000}, 0, 10); one.at(1000) != 0 {
		t.Errorf("a single value lies at %g, want 0", one.at(1000))
	}
}

// TestSVG wants well-formed XML with every curve and label, within the picture.
func TestSVG(t *testing.T) {
	picture := svg("files", someCosts())
	d := xml.NewDecoder(strings.NewReader(picture))
	elements := map[string]int{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, picture)
		}
		if e, ok := token.(xml.StartElement); ok {
			elements[e.Name.Local]++
		}
	}
	// 3 powers of ten of files, 6 of seconds, a title, 5 names
	if elements["polyline"] != 5 || elements["circle"] != 10 || elements["text"] != 3+6+1+5 {
		t.Errorf("elements: %v in\n%s", elements, picture)
	}
	for _, want := range []string{
		`points="70.0,178.0 540.0,50.0"`, // first create: 1 s and 100 s
		">1000<", ">100000<", ">0.001<", ">100<", ">mount ready<",
	} {
		if !strings.Contains(picture, want) {
			t.Errorf("no %s in\n%s", want, picture)
		}
	}
}
