package config

import "slices"

// compressions are those that each serializer has, the most usual first.
var compressions = map[string][]string{
	"text":            hadoopCompressions,
	"header_and_text": hadoopCompressions,
	"json":            hadoopCompressions,
	"avro_event":      {"none", "deflate", "snappy", "zstd", "bzip2"},
	"sequence_file":   {"none", "deflate", "gzip", "zstd", "snappy", "lz4", "bzip2"},
}

// hadoopCompressions are those of whole files, which readers know by the extension.
var hadoopCompressions = []string{"none", "gzip", "zstd", "snappy", "lz4", "bzip2"}

// serializers are the keys of compressions, and those to come, in the order of the document.
var (
	serializers        = []string{"text", "header_and_text", "json", "avro_event", "sequence_file"}
	plannedSerializers = []string{"parquet"}
)

// format checks what goes with which serializer.
func (k checker) format(at string, h *HDFS) {
	if slices.Contains(plannedSerializers, h.Serializer) {
		k.key(at+".serializer", "%q is not supported yet; supported: %s", h.Serializer, alternatives(serializers))
		return
	}
	k.oneOf(at+".serializer", h.Serializer, serializers...)
	k.oneOf(at+".sequence_value", h.SequenceValue, "bytes", "text")
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
