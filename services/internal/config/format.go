package config

import "slices"

// compressions are those that each serializer has, the most usual first.
var compressions = map[string][]string{
	"text":            hadoopCompressions,
	"header_and_text": hadoopCompressions,
	"json":            hadoopCompressions,
	"avro_event":      {"none", "deflate", "snappy", "zstd", "bzip2"},
	"avro":            {"none", "deflate", "snappy", "zstd", "bzip2"},
	"sequence_file":   {"none", "deflate", "gzip", "zstd", "snappy", "lz4", "bzip2"},
	"parquet":         {"none", "snappy", "gzip", "zstd", "lz4"},
}

// hadoopCompressions are those of whole files, which readers know by the extension.
var hadoopCompressions = []string{"none", "gzip", "zstd", "snappy", "lz4", "bzip2"}

// extensions are what readers know the compression of whole files by.
var extensions = map[string]string{"gzip": ".gz", "zstd": ".zst", "snappy": ".snappy", "lz4": ".lz4", "bzip2": ".bz2"}

// wholeFiles are the serializers whose files are compressed as a whole.
var wholeFiles = []string{"text", "header_and_text", "json"}

// serializers are the keys of compressions, in the order of the document.
var serializers = []string{"text", "header_and_text", "json", "avro", "avro_event", "sequence_file", "parquet"}

// format checks what goes with which serializer.
func (k checker) format(at string, h *HDFS) {
	k.oneOf(at+".serializer", h.Serializer, serializers...)
	k.oneOf(at+".sequence_value", h.SequenceValue, "bytes", "text")
	if h.Serializer == "avro" {
		k.present(at+".avro_schema", h.AvroSchema)
	}
	of := compressions[h.Serializer]
	if of == nil || slices.Contains(of, h.Compression) {
		return
	}
	for _, others := range compressions {
		if slices.Contains(others, h.Compression) {
			k.key(at+".compression", "%q is not there for serializer %s; want %s", h.Compression, h.Serializer, alternatives(of))
			return
		}
	}
	k.oneOf(at+".compression", h.Compression, of...)
}

// parquet checks what a format needs whose files are written in one piece: the records of a file
// are leased until then, so the leases of two commits must fit into the memory, and time must end
// the wait.
func (k checker) parquet(at string, d *Delivery) {
	if d.HDFS.Serializer != "parquet" {
		return
	}
	if least := 2 * d.HDFS.Commit.Bytes; d.Memory < least {
		k.key(at+".memory", "is %v; want at least %v, twice hdfs.commit.bytes, as parquet holds the records of a file until it is written", d.Memory, least)
	}
	if d.HDFS.Roll.Interval == 0 && d.HDFS.Roll.Idle == 0 {
		k.key(at+".hdfs.roll.interval", "is 0s, and so is roll.idle; parquet files would wait for ever for more records")
	}
}
