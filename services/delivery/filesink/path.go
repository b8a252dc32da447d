package filesink

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
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
	// maxDir bounds a segment of a directory's path, nameReserve is what a file's name needs
	// beside its prefix, suffix and the marks of files in use: three times two numbers, and
	// punctuation.
	maxDir      = 200
	nameReserve = 110
	minPrefix   = 20

	// wholeMinutesSince is a time in ms since 1970, after which every zone's offset to UTC is
	// whole minutes. (The last that was not was Liberia's.)
	wholeMinutesSince = 65_750_400_000
)

// layout says which file a record belongs to: the compiled templates of the configuration.
//
// A bucket is what the templates yield, a directory and the prefix of its files' names. Rendering
// it costs allocations, so a record's key is made first: the bytes that decide what the templates
// yield, and records with the same key share a bucket. Safe for concurrent use.
type layout struct {
	dir, prefix template
	suffix      string // of files' names
	zone        *time.Location
	rounding    rounding
	timeFrom    string // as in the configuration
	now         func() time.Time
	hdfs        bool
	maxPrefix   int
	successMs   int64           // after the time of a directory it is complete; 0: it is not said
	unit        config.TimeUnit // of the time in dir, when that counts

	// What the templates depend on.
	topic, partition, key, timestamp, offset bool
	slotMs                                   int64 // the time, to this precision; 0 for not at all
	headers                                  []string
}

// item is a record and what the templates may say about it.
type item struct {
	*recordbatch.Record
	source *spillwayv1.SourcePartition
	offset int64
	ms     int64 // the time, since 1970; only when the templates have escapes for it
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
	recordKey // or the header of that name, as the next two
	recordTimestamp
	recordOffset
	header
	timeEscape
	hostEscape // its text is the value
)

// newLayout compiles the templates. Names end with the extension, whether the configured suffix
// does or not. host looks up what %[localhost], %[IP] and %[FQDN] yield.
func newLayout(cfg *config.HDFS, extension string, host func(what string) (string, error)) (*layout, error) {
	l := &layout{suffix: cfg.FileSuffix, hdfs: strings.HasPrefix(cmp.Or(cfg.PlacesLike, cfg.URL), "hdfs:"), zone: time.Local, timeFrom: cfg.TimeFrom, now: time.Now}
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
	l.rounding = newRounding(cfg)
	var err error
	if l.dir, err = l.compile(cfg.Path, host); err != nil {
		return nil, fmt.Errorf("path %w", err)
	}
	if l.prefix, err = l.compile(cfg.FilePrefix, host); err != nil {
		return nil, fmt.Errorf("file_prefix %w", err)
	}
	if l.successMs = cfg.SuccessAfter.Milliseconds(); l.successMs > 0 {
		if l.unit, err = config.PathTimeUnit(cfg.Path); err != nil {
			return nil, fmt.Errorf("success_after: path %w", err)
		}
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
	kind := header
	switch name {
	case "key":
		kind, l.key = recordKey, true
	case "timestamp":
		kind, l.timestamp = recordTimestamp, true
	case "offset":
		kind, l.offset = recordOffset, true
	}
	if !slices.Contains(l.headers, name) {
		l.headers = append(l.headers, name)
	}
	return part{kind: kind, text: name}
}

// item says what the templates may be about.
func (l *layout) item(source *spillwayv1.SourcePartition, offset int64, r *recordbatch.Record) item {
	it := item{Record: r, source: source, offset: offset}
	if l.slotMs > 0 {
		it.ms = max(l.timeOf(r), 0)
	}
	return it
}

// timeOf is what the escapes of times are about. A header that is no number is as good as none.
func (l *layout) timeOf(r *recordbatch.Record) int64 {
	switch l.timeFrom {
	case "local":
		return l.now().UnixMilli()
	case "record":
		if value, ok := r.Header("timestamp"); ok {
			if ms, err := strconv.ParseInt(string(value), 10, 64); err == nil {
				return ms
			}
		}
	}
	return r.TimestampMs
}

// appendKey appends what decides about the bucket of it to key.
func (l *layout) appendKey(key []byte, it item) []byte {
	if l.topic {
		key = binary.AppendUvarint(key, uint64(len(it.source.GetTopic())))
		key = append(key, it.source.GetTopic()...)
	}
	if l.partition {
		key = binary.AppendUvarint(key, uint64(it.source.GetPartition()))
	}
	if l.key {
		key = appendOptional(key, it.Key, it.Key != nil)
	}
	if l.timestamp {
		key = binary.AppendVarint(key, it.TimestampMs)
	}
	if l.offset {
		key = binary.AppendVarint(key, it.offset)
	}
	if l.slotMs > 0 {
		slot := l.slotMs
		if it.ms < wholeMinutesSince {
			slot = min(slot, 1000)
		}
		key = binary.AppendUvarint(key, uint64(it.ms-it.ms%slot))
	}
	for _, name := range l.headers {
		value, there := it.Header(name)
		key = appendOptional(key, value, there)
	}
	return key
}

// appendOptional appends what is there and empty as something else than what is not there, in
// whose place something else may count.
func appendOptional(key, value []byte, there bool) []byte {
	if !there {
		return append(key, 0)
	}
	key = binary.AppendUvarint(key, uint64(len(value))+1)
	return append(key, value...)
}

// render returns the directory and the prefix for it. Both are fit for paths: dir is "" for the
// root or begins with a slash, and has no segment that is empty, "." or "..".
func (l *layout) render(it item) (dir, prefix string) {
	dir = l.text(l.dir, "/", it)
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
	return dir, shorten(l.text(l.prefix, "", it), l.maxPrefix)
}

// text is the template with its escapes replaced; of times alone the bytes in allowed stay as
// they are.
func (l *layout) text(t template, allowed string, it item) string {
	var b []byte
	at := time.UnixMilli(it.ms).In(l.zone)
	rounded := l.rounding.down(at)
	for _, p := range t {
		switch p.kind {
		case literal:
			b = append(b, p.text...)
		case topicName:
			b = l.appendSafe(b, it.source.GetTopic(), "")
		case partitionNumber:
			b = strconv.AppendInt(b, int64(it.source.GetPartition()), 10)
		case recordKey, recordTimestamp, recordOffset, header:
			b = l.appendSafe(b, it.field(p), "")
		case hostEscape:
			b = l.appendSafe(b, p.text, "")
		case timeEscape:
			if p.letter == 't' { // never rounded, as in Flume
				b = strconv.AppendInt(b, it.ms, 10)
				continue
			}
			b = l.appendSafe(b, formatTime(p.letter, rounded), allowed)
		}
	}
	return string(b)
}

// field is what %{name} yields. As among the headers of events (serializer), the record's key is
// before a header of that name, and a header before timestamp and offset.
func (it item) field(p part) string {
	if p.kind == recordKey && it.Key != nil {
		return string(it.Key)
	}
	value, there := it.Header(p.text)
	switch {
	case there:
	case p.kind == recordTimestamp:
		return strconv.FormatInt(it.TimestampMs, 10)
	case p.kind == recordOffset:
		return strconv.FormatInt(it.offset, 10)
	}
	return string(value)
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
