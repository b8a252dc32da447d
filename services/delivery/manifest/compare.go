package manifest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Verdict is what a comparison says of a directory.
type Verdict string

// The verdicts.
const (
	Equal   Verdict = "equal"
	Differs Verdict = "differs"
	InUse   Verdict = "in use" // somebody writes a file there, so it is not compared
)

// Comparison compares what a manifest says (here) with what somebody else wrote (there).
type Comparison struct {
	Here, There Tree
	// HereRoot and ThereRoot are the directories that stand for each other.
	HereRoot, ThereRoot string
	// InUseSuffix ends the names of files that are still being written, there.
	InUseSuffix string
	// MaxChecksums bounds how many checksums are in memory at a time; 0: 4,000,000, which take
	// about 130 MB.
	MaxChecksums int
	// Progress is called now and then, by the goroutine of Run; nil: nobody asks.
	Progress func(Progress)

	read atomic.Int64
}

// Progress is how far a comparison has come.
type Progress struct {
	Directories, Done int
	Lines             int64 // read so far, of both sides
}

// Side is what one side has in a directory.
type Side struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// Records is only known here.
	Records int64 `json:"records,omitempty"`
	Lines   int64 `json:"lines"`

	sum Sum
}

// Directory is what the comparison of a directory yields. Its numbers are lines.
type Directory struct {
	Path    string  `json:"path"`
	Verdict Verdict `json:"verdict"`
	Here    Side    `json:"here"`
	There   Side    `json:"there"`
	// Equal lines are on both sides. Those that are there more often than here are DoubledThere.
	Equal        int64 `json:"equal"`
	MissingThere int64 `json:"missing_there"`
	MissingHere  int64 `json:"missing_here"`
	DoubledThere int64 `json:"doubled_there"`
	// Hours are the records here by the hour of their timestamps, in UTC.
	Hours []Hour `json:"hours,omitempty"`
	// Missing are the offsets of what is missing there; More that there are more than are listed.
	Missing []Offsets `json:"missing,omitempty"`
	More    bool      `json:"more,omitempty"`
	// Unknown are examples of lines that are missing here.
	Unknown []Line `json:"unknown,omitempty"`
	// Trouble is what could not be read.
	Trouble []string `json:"trouble,omitempty"`
}

// Hour is a count of records.
type Hour struct {
	Hour         time.Time `json:"hour"`
	Records      int64     `json:"records"`
	MissingThere int64     `json:"missing_there"`
}

// Offsets is a range of offsets of a source partition.
type Offsets struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	First     int64  `json:"first"`
	Next      int64  `json:"next"`
}

// Line is a place in a file.
type Line struct {
	File string `json:"file"`
	// Number of the line or, in files that have records, of the line of their values; from 1.
	Number int64 `json:"number"`
}

const (
	defaultChecksums = 4_000_000
	maxOffsets       = 200_000 // of one directory that are kept to make ranges of
	maxRanges        = 1_000
	maxHours         = 10_000
	maxUnknown       = 10
	maxTrouble       = 10
)

// Run compares all directories of both sides and calls each with the result of every one, in
// order. An error means that the comparison is not complete.
func (c *Comparison) Run(ctx context.Context, each func(*Directory) error) error {
	here, err := walk(ctx, c.Here, c.HereRoot, func(name string) bool { return strings.HasSuffix(name, ".tmp") })
	if err != nil {
		return fmt.Errorf("list the manifest: %w", err)
	}
	there, err := walk(ctx, c.There, c.ThereRoot, func(name string) bool {
		return c.InUseSuffix != "" && strings.HasSuffix(name, c.InUseSuffix)
	})
	if err != nil {
		return fmt.Errorf("list what it is compared with: %w", err)
	}
	paths := make(map[string]bool, max(len(here), len(there)))
	for p := range here {
		paths[p] = true
	}
	for p := range there {
		paths[p] = true
	}
	for i, p := range slices.Sorted(maps.Keys(paths)) {
		if c.Progress != nil {
			c.Progress(Progress{len(paths), i, c.read.Load()})
		}
		d, err := c.directory(ctx, p, cmp.Or(here[p], &directory{}), cmp.Or(there[p], &directory{}))
		if err != nil {
			return fmt.Errorf("compare %s: %w", path.Join(c.ThereRoot, p), err)
		}
		if err := each(d); err != nil {
			return err
		}
	}
	return nil
}

// directory compares one: by sums first, and in detail when these differ.
func (c *Comparison) directory(ctx context.Context, p string, here, there *directory) (*Directory, error) {
	d := &Directory{Path: path.Join("/", c.ThereRoot, p)}
	for _, f := range here.files {
		d.Here.Files++
		d.Here.Bytes += f.Size
	}
	for _, f := range there.files {
		d.There.Files++
		d.There.Bytes += f.Size
	}
	if here.inUse+there.inUse > 0 {
		d.Verdict = InUse
		return d, nil
	}
	hours := make(map[int64]*Hour)
	err := c.entries(ctx, p, here, func(e *Entry) {
		d.Here.Records++
		hourOf(hours, e).Records++
		for _, h := range e.Lines {
			d.Here.sum.add(h)
		}
	})
	if err != nil {
		return nil, err
	}
	broken := make(map[string]bool) // files of which not all could be read
	err = c.lines(ctx, p, there, d, broken, func(_ Info, _ int64, h uint64) { d.There.sum.add(h) })
	if err != nil {
		return nil, err
	}
	d.Here.Lines, d.There.Lines = d.Here.sum.Lines, d.There.sum.Lines
	if d.Here.sum == d.There.sum && len(d.Trouble) == 0 {
		d.Verdict, d.Equal = Equal, d.Here.Lines
		d.Hours = sortedHours(hours)
		return d, nil
	}
	d.Verdict = Differs
	missing := &missing{}
	slices := int(d.Here.Lines)/cmp.Or(c.MaxChecksums, defaultChecksums) + 1
	for i := range slices {
		s := &share{of: uint64(slices), number: uint64(i), sources: make(map[string]int32)}
		if err := c.detail(ctx, p, here, there, d, s, hours, missing); err != nil {
			return nil, err
		}
	}
	d.Missing, d.More = missing.ranges()
	d.Hours = sortedHours(hours)
	return d, nil
}

// hourOf returns the hour that a record belongs to; all that are too many are the last.
func hourOf(hours map[int64]*Hour, e *Entry) *Hour {
	ms := time.Hour.Milliseconds()
	at := e.TimestampMs / ms
	if hours[at] == nil {
		if len(hours) >= maxHours {
			at = 1<<40 - 1
		}
		if hours[at] == nil {
			hours[at] = &Hour{Hour: time.UnixMilli(min(at, 1<<32) * ms).UTC()}
		}
	}
	return hours[at]
}

func sortedHours(hours map[int64]*Hour) []Hour {
	var all []Hour
	for _, at := range slices.Sorted(maps.Keys(hours)) {
		all = append(all, *hours[at])
	}
	return all
}

// entries reads the manifest of a directory.
func (c *Comparison) entries(ctx context.Context, p string, here *directory, each func(*Entry)) error {
	for _, f := range here.files {
		name := path.Join("/", c.HereRoot, p, f.Name)
		in, err := c.Here.Open(ctx, name)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		err = ReadEntries(in, func(e *Entry) error {
			if c.read.Add(int64(len(e.Lines)))&0xFFFF == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			each(e)
			return nil
		})
		if err = errors.Join(err, in.Close()); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

// lines reads what is there in a directory. Of a file that cannot be read to its end the lines
// before count, and the trouble is noted once.
func (c *Comparison) lines(ctx context.Context, p string, there *directory, d *Directory, broken map[string]bool, each func(f Info, number int64, h uint64)) error {
	for _, f := range there.files {
		name := path.Join("/", c.ThereRoot, p, f.Name)
		in, err := c.There.Open(ctx, name)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		number := int64(0)
		err = readLines(in, f.Name, func(h uint64) error {
			if c.read.Add(1)&0xFFFF == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			number++
			each(f, number, h)
			return nil
		})
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), in.Close())
		}
		if err != nil && broken != nil && !broken[f.Name] {
			broken[f.Name] = true
			if len(d.Trouble) < maxTrouble {
				d.Trouble = append(d.Trouble, fmt.Sprintf("%s ends behind line %d: %v", f.Name, number, err))
			}
		}
		if err := in.Close(); err != nil {
			return fmt.Errorf("close %s: %w", name, err)
		}
	}
	return nil
}

// share is the part of a directory's checksums that is looked at in one pass.
type share struct {
	of, number uint64
	lines      []hashed
	taken      []int32 // of the lines with one checksum, at the first of them: how many are there, too
	sources    map[string]int32
	names      []source
}

type source struct {
	topic     string
	partition int32
}

// hashed is a line here.
type hashed struct {
	h      uint64
	offset int64
	source int32 // index of names
	hour   int32 // since 1970
}

func (s *share) has(h uint64) bool { return h%s.of == s.number }

func (s *share) add(e *Entry) {
	key := fmt.Sprintf("%d/%s", e.Partition, e.Topic)
	id, known := s.sources[key]
	if !known {
		id = int32(len(s.names))
		s.sources[key] = id
		s.names = append(s.names, source{e.Topic, e.Partition})
	}
	for _, h := range e.Lines {
		if s.has(h) {
			s.lines = append(s.lines, hashed{h, e.Offset, id, int32(e.TimestampMs / time.Hour.Milliseconds())})
		}
	}
}

// detail finds what is missing on either side among the checksums of a share.
func (c *Comparison) detail(ctx context.Context, p string, here, there *directory, d *Directory, s *share, hours map[int64]*Hour, m *missing) error {
	if err := c.entries(ctx, p, here, s.add); err != nil {
		return err
	}
	slices.SortFunc(s.lines, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.h, b.h), cmp.Compare(a.source, b.source), cmp.Compare(a.offset, b.offset))
	})
	s.taken = make([]int32, len(s.lines))
	err := c.lines(ctx, p, there, d, nil, func(f Info, number int64, h uint64) {
		if !s.has(h) {
			return
		}
		i, found := slices.BinarySearchFunc(s.lines, h, func(l hashed, h uint64) int { return cmp.Compare(l.h, h) })
		switch {
		case !found:
			d.MissingHere++
			if len(d.Unknown) < maxUnknown {
				d.Unknown = append(d.Unknown, Line{f.Name, number})
			}
		case i+int(s.taken[i]) < len(s.lines) && s.lines[i+int(s.taken[i])].h == h:
			s.taken[i]++
			d.Equal++
		default:
			d.DoubledThere++
		}
	})
	if err != nil {
		return err
	}
	for i := 0; i < len(s.lines); {
		end := i + 1
		for end < len(s.lines) && s.lines[end].h == s.lines[i].h {
			end++
		}
		for _, l := range s.lines[i+int(s.taken[i]) : end] {
			d.MissingThere++
			if hour := hours[int64(l.hour)]; hour != nil {
				hour.MissingThere++
			}
			m.add(s.names[l.source], l.offset)
		}
		i = end
	}
	return nil
}

// missing collects offsets to make ranges of.
type missing struct {
	offsets []missingOffset
	more    bool
}

type missingOffset struct {
	source
	offset int64
}

func (m *missing) add(s source, offset int64) {
	if len(m.offsets) == maxOffsets {
		m.more = true
		return
	}
	m.offsets = append(m.offsets, missingOffset{s, offset})
}

// ranges returns the offsets as ranges, ascending, and whether there are more.
func (m *missing) ranges() ([]Offsets, bool) {
	slices.SortFunc(m.offsets, func(a, b missingOffset) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition), cmp.Compare(a.offset, b.offset))
	})
	var all []Offsets
	for _, o := range m.offsets {
		if n := len(all); n > 0 {
			if last := &all[n-1]; last.Topic == o.topic && last.Partition == o.partition && o.offset <= last.Next {
				last.Next = o.offset + 1
				continue
			}
			if n == maxRanges {
				return all, true
			}
		}
		all = append(all, Offsets{o.topic, o.partition, o.offset, o.offset + 1})
	}
	return all, m.more
}
