package config

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The bounds of values. The lower ones are what works, which tests of the services show; the
// upper ones leave room for arithmetic, and catch a unit too many.
const (
	// A batch is one message of gRPC, so its bytes leave room below rpc.MaxMessageBytes for one
	// record of the largest size.
	maxBatchRecords = 1_000_000
	maxBatchBytes   = 16 * MiB

	minServiceMemory = 1 * MiB
	maxMemory        = 1 * TiB
	minWindowRecords = 100
	minWindowBytes   = 64 * KiB
	maxRecords       = 1_000_000_000_000_000
	// minDisk is a segment that is written, one that is not yet given back, and the reserve. With
	// less, a queue can be full of what nobody needs.
	minDisk = 256 * MiB
	maxDisk = 1024 * TiB
	// minLimit of a subscription leaves room for more than one batch of the default size.
	minLimit = 64 * KiB

	maxWait         = 24 * time.Hour
	maxRoll         = 366 * 24 * time.Hour
	minRoll         = 100 * time.Millisecond
	maxOpenFiles    = 10_000
	minCommit       = 64 * KiB
	maxCommit       = 4 * GiB
	maxFile         = 1024 * TiB
	maxPathBytes    = 4000
	maxPartitions   = 100_000
	maxShards       = 256    // as shards.Max
	maxReplication  = 32_767 // Kafka's protocol has 16 bits for it
	maxTextBytes    = 255
	maxKafkaName    = 249
	maxHDFSReplicas = 512
	// maxNameMarks is what the suffix and the marks of files in use may take of the 255 bytes of
	// a file's name: the delivery needs the rest for the prefix and for what makes the name
	// unique.
	maxNameMarks = 125
)

// CheckDisk says what is wrong with bounds of a queue that are set while it runs: the same as with
// disk.bytes and disk.records in a file.
func CheckDisk(bytes ByteSize, records int64) error {
	switch {
	case bytes < minDisk || bytes > maxDisk:
		return fmt.Errorf("disk bytes of %s: want %s to %s", bytes, minDisk, maxDisk)
	case records < 1 || records > maxRecords:
		return fmt.Errorf("disk records of %d: want 1 to %d", records, int64(maxRecords))
	}
	return nil
}

// number is any of the types of numbers in a Config.
type number interface {
	~int | ~int64
}

func atLeast[N number](k checker, at string, value, least N) {
	if value < least {
		k.key(at, "is %s; want at least %s", text(value), text(least))
	}
}

func between[N number](k checker, at string, value, least, most N) {
	if value < least || value > most {
		k.key(at, "is %s; want %s to %s", text(value), text(least), text(most))
	}
}

// zeroOr is between for a key whose zero has a meaning of its own.
func zeroOr[N number](k checker, at string, value, least, most N, zero string) {
	if value != 0 && (value < least || value > most) {
		k.key(at, "is %s; want %s to %s, or %s for %s", text(value), text(least), text(most), text(N(0)), zero)
	}
}

// limit is of a subscription's backlog, and disk is a key of its queue.
func (k checker) limit(at string, limit ByteSize, diskAt string, disk ByteSize) {
	switch {
	case limit == 0:
	case limit < minLimit:
		k.key(at, "is %s; want at least %s, or 0B for what the queue's disk allows", limit, minLimit)
	case limit > disk && !k.blamed[diskAt]:
		k.key(at, "is %s; want at most %s, the queue's disk.bytes, which is reached before", limit, disk)
	}
}

// dataDir is a directory of the buffer's own.
func (k checker) dataDir(at, dir string) {
	switch _, written := k.places[at]; {
	case dir == "" && written:
		k.missing(at)
	case dir == "":
	case strings.ContainsFunc(dir, unicode.IsControl):
		k.key(at, "%q has a control character; want a directory such as /var/lib/spillway", dir)
	case path.Clean(dir) == "/":
		k.key(at, "%q is the root directory; want one of its own, such as /var/lib/spillway", dir)
	}
}

// plain is a text that goes into names, messages and protocols.
func (k checker) plain(at, value string) {
	switch {
	case len(value) > maxTextBytes:
		k.key(at, "has %d bytes; want at most %d", len(value), maxTextBytes)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		k.key(at, "%q has a control character, or is not UTF-8; want plain text", value)
	case strings.TrimSpace(value) != value:
		k.key(at, "%q begins or ends with a blank; want none there", value)
	}
}

// nameMarks are the parts of a file's name that are the same for all files, which leave too
// little room for the rest when they are too long together.
func (k checker) nameMarks(at string, h *HDFS) {
	suffix := h.FileSuffix
	if extension := extensions[h.Compression]; slices.Contains(wholeFiles, h.Serializer) && !strings.HasSuffix(suffix, extension) {
		suffix += extension
	}
	if n := len(suffix) + len(h.InUsePrefix) + len(h.InUseSuffix); n > maxNameMarks {
		longest := "file_suffix"
		switch max(len(h.FileSuffix), len(h.InUsePrefix), len(h.InUseSuffix)) {
		case len(h.InUsePrefix):
			longest = "in_use_prefix"
		case len(h.InUseSuffix):
			longest = "in_use_suffix"
		}
		k.key(join(at, longest), "is too long: with the extension of the compression, file_suffix, in_use_prefix and in_use_suffix have %d bytes together; want at most %d of the 255 that a file's name may have", n, maxNameMarks)
	}
}
