package filesink

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	// maxName is what HDFS and most local file systems allow in one segment of a path.
	maxName = 255
	// maxDir bounds a segment of a directory's path, nameReserve is what a file's name needs beside
	// its prefix, suffix and the marks of files in use: three times two numbers, and punctuation.
	maxDir      = 200
	nameReserve = 80
	minPrefix   = 20

	// wholeMinutesSince is a time in ms since 1970, after which every zone's offset to UTC is whole
	// minutes. (The last that was not was Liberia's.)
	wholeMinutesSince = 65_750_400_000
)

// layout says which file a record belongs to: the compiled templates of the configuration.
//
// A bucket is what the templates yield, a directory and the prefix of its files' names. Rendering it
// costs allocations, so a record's key is made first: the bytes that decide what the templates yield,
// and records with the same key share a bucket. Safe for concurrent use.
type layout struct {
	dir, prefix template
	suffix      string // of files' names
	zone        *time.Location
	hdfs        bool
	maxPrefix   int

	// What the templates depend on.
	topic, partition bool
	slotMs           int64 // the time, to this precision; 0 for not at all
	headers          []string
}

// template is a text with escapes.
type template []part

type part struct {
	kind   partKind
	text   string // the literal text or the header's name
	letter byte   // of a time escape
}

type partKind int

const (
	literal partKind = iota
	topicName
	partitionNumber
	header
	timeEscape
	hostEscape // its text is the value
)

// newLayout compiles the templates. Names end with the extension, whether the configured suffix does or not. host looks up what %[localhost], %[IP] and %[FQDN] yield.
func newLayout(cfg *config.HDFS, extension string, host func(what string) (string, error)) (*layout, error) {
	l := &layout{suffix: cfg.FileSuffix, hdfs: strings.HasPrefix(cfg.URL, "hdfs:"), zone: time.Local}
	if !strings.HasSuffix(l.suffix, extension) {
		l.suffix += extension
	}
	if cfg.TimeZone != "" {
		zone, err := time.LoadLocation(cfg.TimeZone)
		if err != nil {
			return nil, fmt.Errorf("time_zone: %w", err)
		}
		l.zone = zone
	}
	var err error
	if l.dir, err = l.compile(cfg.Path, host); err != nil {
		return nil, fmt.Errorf("path %w", err)
	}
	if l.prefix, err = l.compile(cfg.FilePrefix, host); err != nil {
		return nil, fmt.Errorf("file_prefix %w", err)
	}
	l.maxPrefix = min(maxDir, maxName-nameReserve-len(l.suffix)-len(cfg.InUsePrefix)-len(cfg.InUseSuffix))
	if l.maxPrefix < minPrefix {
		return nil, fmt.Errorf("file_suffix, in_use_prefix and in_use_suffix are too long together: a name has %d bytes, and %d remain for file_prefix", maxName, l.maxPrefix)
	}
	return l, nil
}

// compile splits a template at its escapes and notes what it depends on.
func (l *layout) compile(text string, host func(string) (string, error)) (template, error) {
	var t template
	for rest := text; rest != ""; {
		before, escape, found := strings.Cut(rest, "%")
		if before != "" {
			t = append(t, part{kind: literal, text: before})
		}
		if !found {
			break
		}
		p, size, err := l.escape(escape, host)
		if err != nil {
			return nil, fmt.Errorf("%q %w", text, err)
		}
		t = append(t, p)
		rest = escape[size:]
	}
	return t, nil
}

// escape compiles the escape at the beginning of s, what follows a %, and returns its length.
func (l *layout) escape(s string, host func(string) (string, error)) (part, int, error) {
	if s == "" {
		return part{}, 0, fmt.Errorf("ends with a %%")
	}
	switch s[0] {
	case '%':
		return part{kind: literal, text: "%"}, 1, nil
	case '{':
		name, _, closed := strings.Cut(s[1:], "}")
		if !closed || name == "" {
			return part{}, 0, fmt.Errorf("has a %%{ without a name and a }")
		}
		return l.field(name), len(name) + 2, nil
	case '[':
		name, _, closed := strings.Cut(s[1:], "]")
		if !closed {
			return part{}, 0, fmt.Errorf("has a %%[ that is not closed")
		}
		value, err := host(name)
		if err != nil {
			return part{}, 0, fmt.Errorf("%%[%s]: %w", name, err)
		}
		return part{kind: hostEscape, text: value}, len(name) + 2, nil
	}
	precision := int64(time.Minute / time.Millisecond)
	switch s[0] {
	case 't':
		precision = 1
	case 's', 'S', 'c':
		precision = int64(time.Second / time.Millisecond)
	default:
		if !strings.ContainsRune("aAbBdDeHIjklmMnpyYzZ", rune(s[0])) {
			return part{}, 0, fmt.Errorf("has an unknown escape %%%c", s[0])
		}
	}
	if l.slotMs == 0 || precision < l.slotMs {
		l.slotMs = precision
	}
	return part{kind: timeEscape, letter: s[0]}, 1, nil
}

// field is what %{name} stands for.
func (l *layout) field(name string) part {
	switch name {
	case "topic":
		l.topic = true
		return part{kind: topicName}
	case "partition":
		l.partition = true
		return part{kind: partitionNumber}
	}
	if !slices.Contains(l.headers, name) {
		l.headers = append(l.headers, name)
	}
	return part{kind: header, text: name}
}

// appendKey appends what decides about the bucket of r to key.
func (l *layout) appendKey(key []byte, source *spillwayv1.SourcePartition, r *recordbatch.Record) []byte {
	if l.topic {
		key = binary.AppendUvarint(key, uint64(len(source.GetTopic())))
		key = append(key, source.GetTopic()...)
	}
	if l.partition {
		key = binary.AppendUvarint(key, uint64(source.GetPartition()))
	}
	if l.slotMs > 0 {
		ms, slot := max(r.TimestampMs, 0), l.slotMs
		if ms < wholeMinutesSince {
			slot = min(slot, 1000)
		}
		key = binary.AppendUvarint(key, uint64(ms-ms%slot))
	}
	for _, name := range l.headers {
		value, _ := r.Header(name)
		key = binary.AppendUvarint(key, uint64(len(value)))
		key = append(key, value...)
	}
	return key
}

// render returns the directory and the prefix for r. Both are fit for paths: dir is "" for the root
// or begins with a slash, and has no segment that is empty, "." or "..".
func (l *layout) render(source *spillwayv1.SourcePartition, r *recordbatch.Record) (dir, prefix string) {
	dir = l.text(l.dir, "/", source, r)
	segments := strings.Split(strings.TrimPrefix(dir, "/"), "/")
	for i, s := range segments {
		switch s {
		case "":
			s = "empty"
		case ".", "..":
			s = strings.ReplaceAll(s, ".", "%2E")
		}
		segments[i] = shorten(s, maxDir)
	}
	if len(l.dir) == 1 && l.dir[0].kind == literal && l.dir[0].text == "/" { // not when escapes yield nothing
		segments = nil
	}
	dir = ""
	for _, s := range segments {
		dir += "/" + s
	}
	return dir, shorten(l.text(l.prefix, "", source, r), l.maxPrefix)
}

// text is the template with its escapes replaced; of times alone the bytes in allowed stay as they are.
func (l *layout) text(t template, allowed string, source *spillwayv1.SourcePartition, r *recordbatch.Record) string {
	var b []byte
	at := time.UnixMilli(max(r.TimestampMs, 0)).In(l.zone)
	for _, p := range t {
		switch p.kind {
		case literal:
			b = append(b, p.text...)
		case topicName:
			b = l.appendSafe(b, source.GetTopic(), "")
		case partitionNumber:
			b = strconv.AppendInt(b, int64(source.GetPartition()), 10)
		case header:
			value, _ := r.Header(p.text)
			b = l.appendSafe(b, string(value), "")
		case hostEscape:
			b = l.appendSafe(b, p.text, "")
		case timeEscape:
			b = l.appendSafe(b, formatTime(p.letter, at), allowed)
		}
	}
	return string(b)
}

// appendSafe appends s with %XX for what is not fit for a name everywhere: '/', '%', control
// characters, bytes that are not UTF-8, and on HDFS ':'.
func (l *layout) appendSafe(b []byte, s, allowed string) []byte {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		control := r < ' ' || r >= 0x7f && r < 0xa0
		invalid := r == utf8.RuneError && size == 1
		special := r == '/' || r == '%' || r == ':' && l.hdfs
		if (control || invalid || special) && !strings.ContainsRune(allowed, r) {
			for _, c := range []byte(s[i : i+size]) {
				b = fmt.Appendf(b, "%%%02X", c)
			}
		} else {
			b = append(b, s[i:i+size]...)
		}
		i += size
	}
	return b
}

// shorten returns s, or when it is longer than limit its beginning and a hash of all of it.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	h := fnv.New64a()
	h.Write([]byte(s)) // never fails
	end := limit - 17
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%s~%016x", s[:end], h.Sum64())
}

// formatTime is what %letter yields, as in Flume; %Z, which yields nothing there, is the zone's name.
func formatTime(letter byte, t time.Time) string {
	switch letter {
	case 'a':
		return t.Format("Mon")
	case 'A':
		return t.Format("Monday")
	case 'b':
		return t.Format("Jan")
	case 'B':
		return t.Format("January")
	case 'c':
		return t.Format("Mon Jan 2 15:04:05 2006")
	case 'd':
		return t.Format("02")
	case 'D':
		return t.Format("01/02/06")
	case 'e':
		return t.Format("2")
	case 'H':
		return t.Format("15")
	case 'I':
		return t.Format("03")
	case 'j':
		return t.Format("002")
	case 'k':
		return strconv.Itoa(t.Hour())
	case 'l':
		return t.Format("3")
	case 'm':
		return t.Format("01")
	case 'M':
		return t.Format("04")
	case 'n':
		return t.Format("1")
	case 'p':
		return t.Format("PM")
	case 's':
		return strconv.FormatInt(t.Unix(), 10)
	case 'S':
		return t.Format("05")
	case 't':
		return strconv.FormatInt(t.UnixMilli(), 10)
	case 'y':
		return t.Format("06")
	case 'Y':
		return t.Format("2006")
	case 'z':
		return t.Format("-0700")
	default: // 'Z', the last that compile lets through
		return t.Format("MST")
	}
}

// lookupHost is what %[what] yields on this machine.
func lookupHost(what string) (string, error) {
	switch what {
	case "localhost", "IP", "FQDN":
	default:
		return "", fmt.Errorf("unknown; want %%[localhost], %%[IP] or %%[FQDN]")
	}
	name, err := os.Hostname()
	if err != nil || what == "localhost" {
		return name, err
	}
	addrs, err := net.LookupHost(name)
	if err != nil {
		return "", fmt.Errorf("look up this machine's address: %w", err)
	}
	if what == "IP" {
		return addrs[0], nil
	}
	names, err := net.LookupAddr(addrs[0])
	if err != nil || len(names) == 0 {
		return name, nil // as Java does
	}
	return strings.TrimSuffix(names[0], "."), nil
}
