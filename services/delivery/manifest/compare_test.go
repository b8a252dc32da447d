package manifest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// files is a Tree in memory.
type files map[string][]byte

func (f files) ReadDir(_ context.Context, dir string) ([]Info, error) {
	var all []Info
	seen := make(map[string]bool)
	for name, data := range f {
		rest, ok := strings.CutPrefix(name, strings.TrimSuffix(path.Clean("/"+dir), "/")+"/")
		if !ok {
			continue
		}
		item, _, sub := strings.Cut(rest, "/")
		if !seen[item] {
			all = append(all, Info{Name: item, Dir: sub, Size: int64(len(data))})
		}
		seen[item] = true
	}
	if len(all) == 0 {
		return nil, fs.ErrNotExist
	}
	return all, nil
}

func (f files) Open(_ context.Context, name string) (io.ReadCloser, error) {
	data, found := f[name]
	if !found {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// entries makes a file of a manifest of values of partition 3 from an offset on, each a minute
// later.
func entries(t testing.TB, first int64, values ...string) []byte {
	t.Helper()
	var b []byte
	for i, v := range values {
		b = AppendEntry(b, "t", 3, first+int64(i), (first+int64(i))*60_000, []byte(v))
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

func compare(t *testing.T, c *Comparison) map[string]*Directory {
	t.Helper()
	c.HereRoot, c.ThereRoot, c.InUseSuffix = "/m", "/f", ".tmp"
	all := make(map[string]*Directory)
	if err := c.Run(t.Context(), func(d *Directory) error {
		all[d.Path] = d
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestCompare tells what is on one side only, with offsets, lines and hours.
func TestCompare(t *testing.T) {
	here := files{
		"/m/same/manifest.1.zst": entries(t, 0, "a", "b", "c"), "/m/same/manifest.2.zst": entries(t, 3, "a\nlong\n", ""),
		"/m/lost/manifest.1.zst": entries(t, 58, "a", "b", "c", "d", "c"),
		"/m/only/manifest.1.zst": entries(t, 7, "x", "y"),
		"/m/now/manifest.1.zst":  entries(t, 0, "x"), "/m/now/manifest.2.zst.tmp": nil,
	}
	there := files{
		"/f/same/a": []byte("c\na\nlong\n\n\nb\n"), "/f/same/b": []byte("a\n"), "/f/same/_SUCCESS": nil,
		"/f/lost/a": []byte("a\nc\na\nnew\n"),
		"/f/now/a":  []byte("x\n"),
		"/f/late/a": []byte("x\n"), "/f/late/b.tmp": []byte("x\n"),
		"/f/more/a": []byte("1\n2"),
	}
	for _, most := range []int{0, 1, 2} {
		got := compare(t, &Comparison{Here: here, There: there, MaxChecksums: most})
		if len(got) != 6 {
			t.Fatalf("%d directories", len(got))
		}
		if d := got["/f/same"]; d.Verdict != Equal || d.Equal != 7 || d.Here.Records != 5 || d.There.Files != 2 {
			t.Errorf("equal: %+v", d)
		}
		d := got["/f/lost"]
		if d.Verdict != Differs || d.Equal != 2 || d.MissingThere != 3 || d.MissingHere != 1 || d.DoubledThere != 1 {
			t.Errorf("lost: %+v", d)
		}
		if want := []Offsets{{"t", 3, 59, 60}, {"t", 3, 61, 63}}; fmt.Sprint(d.Missing) != fmt.Sprint(want) || d.More {
			t.Errorf("missing there: %v", d.Missing)
		}
		if want := []Line{{"a", 4}}; fmt.Sprint(d.Unknown) != fmt.Sprint(want) {
			t.Errorf("missing here: %v", d.Unknown)
		}
		if len(d.Hours) != 2 || d.Hours[0].Records != 2 || d.Hours[0].MissingThere != 1 || d.Hours[1].Records != 3 || d.Hours[1].MissingThere != 2 || d.Hours[1].Hour.Hour() != 1 {
			t.Errorf("hours: %+v", d.Hours)
		}
		if d := got["/f/only"]; d.Verdict != Differs || d.MissingThere != 2 || len(d.Missing) != 1 || d.Missing[0].Next != 9 {
			t.Errorf("only here: %+v", d)
		}
		if d := got["/f/more"]; d.Verdict != Differs || d.MissingHere != 2 {
			t.Errorf("only there: %+v", d)
		}
		if got["/f/now"].Verdict != InUse || got["/f/late"].Verdict != InUse {
			t.Errorf("in use: %+v, %+v", got["/f/now"], got["/f/late"])
		}
	}
}

// TestCompareAtRandom compares multisets with a small oracle, a share of the checksums at a time.
func TestCompareAtRandom(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 17))
		counts := make(map[string][2]int)
		var values []string
		var text []byte
		for range r.IntN(60) {
			v := fmt.Sprint(r.IntN(20))
			c := counts[v]
			if r.IntN(2) == 0 {
				values = append(values, v)
				c[0]++
			} else {
				text = append(text, v+"\n"...)
				c[1]++
			}
			counts[v] = c
		}
		var equal, missingThere, missingHere, doubled int64
		for _, c := range counts {
			equal += int64(min(c[0], c[1]))
			missingThere += int64(max(c[0]-c[1], 0))
			if c[0] == 0 {
				missingHere += int64(c[1])
			} else {
				doubled += int64(max(c[1]-c[0], 0))
			}
		}
		d := compare(t, &Comparison{Here: files{"/m/d/x": entries(t, 0, values...)}, There: files{"/f/d/x": text}, MaxChecksums: 1 + r.IntN(10)})["/f/d"]
		if d.Equal != equal || d.MissingThere != missingThere || d.MissingHere != missingHere || d.DoubledThere != doubled ||
			(d.Verdict == Equal) != (missingThere+missingHere+doubled == 0) {
			t.Fatalf("seed %d: %+v, want %d, %d, %d, %d", seed, d, equal, missingThere, missingHere, doubled)
		}
		listed := int64(0)
		for _, o := range d.Missing {
			listed += o.Next - o.First
		}
		if listed != missingThere {
			t.Fatalf("seed %d: %d offsets are listed, %d are missing", seed, listed, missingThere)
		}
	}
}

// TestBrokenFiles says which file ends early, and counts what comes before.
func TestBrokenFiles(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprint(z, strings.Repeat("line\n", 1000))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	d := compare(t, &Comparison{Here: files{"/m/d/x": entries(t, 0, "line")}, There: files{"/f/d/x.gz": b.Bytes()[:b.Len()-9], "/f/d/y": []byte("line\n")}})["/f/d"]
	if d.Verdict != Differs || len(d.Trouble) != 1 || !strings.Contains(d.Trouble[0], "x.gz ends behind line") {
		t.Errorf("%+v", d)
	}
	c := &Comparison{Here: files{"/m/d/x": []byte("no manifest")}, There: files{}, HereRoot: "/m", ThereRoot: "/f"}
	if err := c.Run(t.Context(), func(*Directory) error { return nil }); err == nil || !strings.Contains(err.Error(), "malformed manifest") {
		t.Errorf("a file that is no manifest: %v", err)
	}
}

// TestEntries reads back what was written, with the bound of lines.
func TestEntries(t *testing.T) {
	n := 0
	err := ReadEntries(bytes.NewReader(entries(t, 5, "a", "", "x\ny\n", strings.Repeat("\n", 2*MaxLines))), func(e *Entry) error {
		want := []int{1, 1, 3, MaxLines}[n]
		if e.Topic != "t" || e.Partition != 3 || e.Offset != int64(5+n) || e.TimestampMs != e.Offset*60_000 || len(e.Lines) != want {
			t.Errorf("entry %d has %d lines, want %d: %s/%d@%d", n, len(e.Lines), want, e.Topic, e.Partition, e.Offset)
		}
		n++
		return nil
	})
	if err != nil || n != 4 {
		t.Errorf("%d entries, %v", n, err)
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte("1\t2\t3\tab,cd\ttopic"))
	f.Add([]byte("1\t2\t3\t\ttopic"))
	f.Fuzz(func(_ *testing.T, line []byte) {
		var e Entry
		e.parse(line)
	})
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), "x")
	f.Add([]byte("SEQ\x06\x01a\x0e.BytesWritable\x00\x00\x00\x00\x00\x000123456789abcdef\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x01x"), "x")
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x03\x01\x00a"), "x.snappy")
	f.Fuzz(func(_ *testing.T, data []byte, name string) {
		if !bytes.HasPrefix(data, []byte("BZh")) {
			_ = readLines(bytes.NewReader(data), name, func(uint64) error { return nil })
		}
	})
}
