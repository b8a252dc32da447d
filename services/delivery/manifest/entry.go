// Package manifest says what a delivery to files would have written, without writing it: which
// records belong into which directory, with a checksum of each of their lines. Compare holds that
// against files that somebody else wrote, such as Flume beside which a pipeline runs.
//
// A manifest is a tree of directories like the one that it stands for, with files of entries
// (entry.go) that a filesink writes, each record once. What it is compared with may be text,
// compressed or not, SequenceFiles, or containers of Avro events (content.go). The unit of
// comparison is the line: text files know no records, and a value may have several lines.
//
// Memory is bounded, whatever the number of records: a directory whose counts and sums are equal
// is read once and kept nowhere; one that differs is read again, a share of its checksums at a
// time (compare.go).
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
)

// MaxLines is how many lines of a record have a checksum in its entry. Those behind are not
// compared.
const MaxLines = 10_000

// Entry is a record of a manifest. It is a line of text: the offset, the partition, the timestamp
// in ms since 1970, the checksums of the value's lines with commas between them, the topic; with
// tabs between them, numbers of the checksums hexadecimal.
type Entry struct {
	Topic       string
	Partition   int32
	Offset      int64
	TimestampMs int64
	Lines       []uint64 // checksums (XXH64) of the value's lines; valid until the next entry is read
}

// AppendEntry appends the entry of a record with that value to b, and returns it.
func AppendEntry(b []byte, topic string, partition int32, offset, timestampMs int64, value []byte) []byte {
	b = strconv.AppendInt(b, offset, 10)
	b = append(b, '\t')
	b = strconv.AppendInt(b, int64(partition), 10)
	b = append(b, '\t')
	b = strconv.AppendInt(b, timestampMs, 10)
	b = append(b, '\t')
	for n := 0; n < MaxLines; n++ {
		if n > 0 {
			b = append(b, ',')
		}
		line, rest, more := bytes.Cut(value, newline)
		b = strconv.AppendUint(b, xxhash.Sum64(line), 16)
		if !more {
			break
		}
		value = rest
	}
	b = append(b, '\t')
	b = append(b, topic...)
	return append(b, '\n')
}

var newline = []byte{'\n'}

// ErrMalformed is returned for a manifest that cannot be read.
var ErrMalformed = errors.New("malformed manifest")

// maxEntryBytes bounds an entry: its checksums, a topic and three numbers.
const maxEntryBytes = MaxLines*17 + 4096

// ReadEntries calls each for the entries of a file of a manifest, in order, and stops at the first
// error.
func ReadEntries(r io.Reader, each func(*Entry) error) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return fmt.Errorf("prepare zstd: %w", err)
	}
	defer z.Close()
	lines := bufio.NewScanner(z)
	lines.Buffer(make([]byte, 0, 64<<10), maxEntryBytes)
	var e Entry
	for n := 1; lines.Scan(); n++ {
		if !e.parse(lines.Bytes()) {
			return fmt.Errorf("%w: line %d is no entry", ErrMalformed, n)
		}
		if err := each(&e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// parse reads the line of an entry. The topic is only copied when it is another one.
func (e *Entry) parse(line []byte) bool {
	var fields [5][]byte
	for i := range fields {
		var found bool
		if fields[i], line, found = bytes.Cut(line, []byte{'\t'}); found != (i < len(fields)-1) {
			return false
		}
	}
	var err [3]error
	var partition int64
	e.Offset, err[0] = strconv.ParseInt(string(fields[0]), 10, 64)
	partition, err[1] = strconv.ParseInt(string(fields[1]), 10, 32)
	e.TimestampMs, err[2] = strconv.ParseInt(string(fields[2]), 10, 64)
	if err != [3]error{} || e.Offset < 0 || partition < 0 {
		return false
	}
	e.Partition, e.Lines = int32(partition), e.Lines[:0]
	for more, sums := true, fields[3]; more; {
		var one []byte
		one, sums, more = bytes.Cut(sums, []byte{','})
		h, err := strconv.ParseUint(string(one), 16, 64)
		if err != nil || len(e.Lines) == MaxLines {
			return false
		}
		e.Lines = append(e.Lines, h)
	}
	if e.Topic != string(fields[4]) {
		e.Topic = string(fields[4])
	}
	return true
}
