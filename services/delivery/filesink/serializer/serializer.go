// Package serializer turns records into the bytes of files, in formats that Hadoop's tools read.
//
// A file is written commit by commit and may be cut after any of them, so a format is one of
// which a whole number of chunks is always a complete file: lines, members of a compressed
// stream, blocks of a container. The records of a chunk are serialized one by one as they come
// (Format.AppendRecord), and when they are committed the chunk is sealed: given the file's header
// when it is the first, cut into blocks, compressed. What a file's later chunks depend on is its
// sync marker and whether it is empty, no more. Parquet has no such chunks: each of its files is
// written in one commit.
//
// No goroutines, no locks but those of sync.Pool. A Format is safe for concurrent use.
package serializer

import (
	"crypto/rand"
	"fmt"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// Format is what the bytes of a file mean.
type Format interface {
	// AppendRecord appends r to b, the records of a chunk, and returns it. Nothing of r is
	// retained.
	AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte
	// Seal makes c.Data what f gets for the records, once. It may use spare for it, which is
	// empty, and returns the one of the two buffers that it does not need. A chunk with data
	// still has some then.
	Seal(c *Chunk, f File, spare []byte) ([]byte, error)
	// Extension is what the name of a file must end with, for readers that go by it; empty for
	// none.
	Extension() string
	// Whole says that a chunk is a file, to which nothing can be appended.
	Whole() bool
}

// Position is where a record comes from.
type Position struct {
	Source *spillwayv1.SourcePartition
	Offset int64
}

// File is what a chunk must know of the file it is for.
type File struct {
	Empty bool // so it needs a header
	Sync  Sync
}

// Sync is the marker between the blocks of one file. It is random, so that no record can contain
// it on purpose.
type Sync [16]byte

// NewSync makes a marker.
func NewSync() Sync {
	var s Sync
	rand.Read(s[:]) // never fails
	return s
}

// blockBytes is how long a block of a container gets, uncompressed, unless one record is longer:
// small enough for readers that hold a block in memory, large enough to compress well.
const blockBytes = 256 << 10

// Chunk is what was serialized since the last commit of a file. The zero Chunk is empty.
type Chunk struct {
	Data   []byte
	blocks []block
}

type block struct {
	begin   int // in Data
	records int64
}

// Add serializes r at the end of c.
func (c *Chunk) Add(f Format, at Position, r *recordbatch.Record) {
	n := len(c.blocks)
	if n == 0 || len(c.Data)-c.blocks[n-1].begin >= blockBytes {
		c.blocks = append(c.blocks, block{begin: len(c.Data)})
		n++
	}
	c.blocks[n-1].records++
	c.Data = f.AppendRecord(c.Data, at, r)
}

// each calls do for all blocks.
func (c *Chunk) each(do func(data []byte, records int64) error) error {
	for i, b := range c.blocks {
		end := len(c.Data)
		if i+1 < len(c.blocks) {
			end = c.blocks[i+1].begin
		}
		if err := do(c.Data[b.begin:end], b.records); err != nil {
			return err
		}
	}
	return nil
}

// New returns the format that cfg asks for. Combinations that are not there are refused by config
// already; the error is for those that came another way.
func New(cfg *config.HDFS) (Format, error) {
	switch cfg.Serializer {
	case "text":
		return newStream(text{newline: cfg.AppendNewline}, cfg.Compression)
	case "header_and_text":
		return newStream(headerAndText{newline: cfg.AppendNewline}, cfg.Compression)
	case "json":
		return newStream(jsonLines{}, cfg.Compression)
	case "avro_event":
		return newAvroEvent(cfg.Compression)
	case "avro":
		return newAvroValues(cfg.AvroSchema, cfg.Compression)
	case "parquet":
		return newParquet(cfg.Compression)
	case "manifest": // of a delivery with manifest in the configuration
		return newStream(manifestEntries{}, cfg.Compression)
	case "sequence_file":
		return newSequenceFile(cfg.Compression, cfg.SequenceValue)
	}
	return nil, fmt.Errorf("serializer: unknown value %q", cfg.Serializer)
}
