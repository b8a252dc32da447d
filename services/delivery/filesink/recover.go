package filesink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/config"
)

// Files in use whose entries are lost with the buffer's ledger have no heir: nobody finishes them.
// What is here finds and finishes them by their names. How much of one was committed nobody knows
// any more: it keeps all that it has, and what of it was not acked is delivered once more.

// ErrLive is wrapped by Recoverer.Free when somebody writes the file, or did a minute ago.
var ErrLive = errors.New("somebody writes it")

// Recoverer is a file system in which files in use can be found, and finished without their
// entries.
type Recoverer interface {
	FS
	// List returns what is in a directory; ErrNotExist when there is none.
	List(ctx context.Context, dir string) ([]Listed, error)
	// Free closes a file that nobody writes, and returns its length. It fails with ErrLive, and
	// with ErrWait while the file system has to do its part.
	Free(ctx context.Context, path string) (int64, error)
	// ReadEnd returns the last bytes of a closed file, at most so many.
	ReadEnd(ctx context.Context, path string, most int64) ([]byte, error)
	// Cut leaves the first bytes of a closed file. It fails with ErrWait while the file system has
	// to do its part: call Free then.
	Cut(ctx context.Context, path string, length int64) error
}

// Listed is something in a directory.
type Listed struct {
	Name     string
	Dir      bool
	Bytes    int64 // of a file in use it may be older
	Modified time.Time
}

// Leftover is a file that has the name of one in use.
type Leftover struct {
	Path     string    `json:"path"`
	Final    string    `json:"final_path"`
	Bytes    int64     `json:"bytes"`
	Modified time.Time `json:"modified"`
	// Keys are those of the entries of sink state that may be the file's.
	Keys []string `json:"-"`
}

// Leftovers finds and finishes files of a delivery.
type Leftovers struct {
	fs    Recoverer
	cfg   *config.HDFS
	names *regexp.Regexp // of what is between prefix and suffix of a file in use
	whole bool
	lines bool // each record ends with a newline
}

// NewLeftovers returns the files of a delivery on fs.
func NewLeftovers(cfg *config.HDFS, fs FS) (*Leftovers, error) {
	able, ok := fs.(Recoverer)
	if !ok {
		return nil, fmt.Errorf("files of %s cannot be looked for", cfg.URL)
	}
	format, err := serializer.New(cfg)
	if err != nil {
		return nil, err
	}
	suffix := cfg.FileSuffix
	if !strings.HasSuffix(suffix, format.Extension()) {
		suffix += format.Extension()
	}
	names, err := regexp.Compile(`^(.*\d+-\d+` + regexp.QuoteMeta(suffix) + `)(\.taken-\d+-\d+)?$`)
	if err != nil {
		return nil, err
	}
	return &Leftovers{fs: able, cfg: cfg, names: names, whole: format.Whole(), lines: format.Extension() == "" && endsLines(cfg)}, nil
}

// endsLines says whether each record is a line, uncompressed.
func endsLines(cfg *config.HDFS) bool {
	switch cfg.Serializer {
	case "json":
		return true
	case "text", "header_and_text":
		return cfg.AppendNewline
	}
	return false
}

var keyPattern = regexp.MustCompile(`\d+-\d+`)

// Find returns the files in use whose paths match a pattern, as those of path.Match, or are below
// a directory that does. Files of other programs that have no such name are left out.
func (l *Leftovers) Find(ctx context.Context, patterns []string) (all []Leftover, err error) {
	seen := make(map[string]bool)
	for _, pattern := range patterns {
		if _, err := path.Match(pattern, ""); err != nil || !strings.HasPrefix(pattern, "/") {
			return nil, fmt.Errorf("path %q: want an absolute path below the delivery's url, in which * ? and [a-z] stand for parts of names", pattern)
		}
		segments := strings.Split(strings.Trim(path.Clean(pattern), "/"), "/")
		if segments[0] == "" {
			segments = nil
		}
		err := l.find(ctx, "/", segments, func(f Leftover) {
			if !seen[f.Path] {
				seen[f.Path] = true
				all = append(all, f)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// find looks below a directory for what matches the segments, and for everything when there are
// none.
func (l *Leftovers) find(ctx context.Context, dir string, segments []string, yield func(Leftover)) error {
	list, err := l.fs.List(ctx, dir)
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range list {
		rest := segments
		if len(segments) > 0 {
			if ok, _ := path.Match(segments[0], f.Name); !ok {
				continue
			}
			rest = segments[1:]
		}
		at := path.Join(dir, f.Name)
		switch {
		case f.Dir:
			if err := l.find(ctx, at, rest, yield); err != nil {
				return err
			}
		case len(rest) == 0:
			if one, ok := l.leftover(at, f); ok {
				yield(one)
			}
		}
	}
	return nil
}

// leftover says whether a file is one in use, by its name.
func (l *Leftovers) leftover(at string, f Listed) (Leftover, bool) {
	name, ok := strings.CutPrefix(f.Name, l.cfg.InUsePrefix)
	if ok {
		name, ok = strings.CutSuffix(name, l.cfg.InUseSuffix)
	}
	found := l.names.FindStringSubmatch(name)
	if !ok || found == nil {
		return Leftover{}, false
	}
	return Leftover{Path: at, Final: path.Join(path.Dir(at), found[1]), Bytes: f.Bytes, Modified: f.Modified, Keys: keyPattern.FindAllString(name, -1)}, true
}

// Results of Finish.
const (
	Finished       = "final"
	FinishedCut    = "final, without the part of a record at its end"
	FinishedAsIs   = "final; its end may be a part of a record"
	RemovedAsEmpty = "removed: it is empty"
	LeftIncomplete = "left: it has no end, and no reader reads it; its records are delivered again"
)

// Finish makes a file final that nobody writes. It fails with ErrLive, and with ErrWait: it is to
// be called again a little later then. It may be repeated after any error.
func (l *Leftovers) Finish(ctx context.Context, f *Leftover) (result string, err error) {
	length, err := l.fs.Free(ctx, f.Path)
	if err != nil {
		return "", err
	}
	f.Bytes = length
	if length == 0 {
		return RemovedAsEmpty, l.fs.Remove(ctx, f.Path)
	}
	result = FinishedAsIs
	switch {
	case l.whole:
		end, err := l.fs.ReadEnd(ctx, f.Path, 4)
		if err != nil {
			return "", err
		}
		if string(end) != "PAR1" {
			return LeftIncomplete, nil
		}
		result = Finished
	case l.lines:
		if result, err = l.cutLine(ctx, f); err != nil {
			return "", err
		}
	}
	return result, l.fs.Rename(ctx, f.Path, f.Final)
}

// cutLine cuts off what is behind the last newline: it was never acked.
func (l *Leftovers) cutLine(ctx context.Context, f *Leftover) (string, error) {
	for most := int64(64 << 10); ; most *= 8 {
		end, err := l.fs.ReadEnd(ctx, f.Path, most)
		if err != nil {
			return "", err
		}
		switch at := int64(bytes.LastIndexByte(end, '\n')); {
		case at == int64(len(end))-1:
			return Finished, nil
		case at >= 0:
			length := f.Bytes - int64(len(end)) + at + 1
			if err := l.fs.Cut(ctx, f.Path, length); err != nil {
				return "", err
			}
			f.Bytes = length
			return FinishedCut, nil
		case int64(len(end)) == f.Bytes || most > 32<<20: // one record is at most 16 MiB
			return FinishedAsIs, nil
		}
	}
}
