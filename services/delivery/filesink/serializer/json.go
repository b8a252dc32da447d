package serializer

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// jsonLines writes an object a line:
//
//	{"cluster":"c","topic":"t","partition":0,"offset":7,"timestamp":1772690889010,"key":null,"value":"text",
//	 "headers":[{"name":"a","value":"b"}]}
//
// Text is text only when it is UTF-8. Anything else is base64 (RFC 4648, with padding) under the
// name with _base64 behind it: "value_base64":"/w==". The headers are a list, for they have an
// order and may repeat.
type jsonLines struct{}

func (jsonLines) AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte {
	b = append(b, `{"cluster":`...)
	b = appendJSONString(b, at.Source.GetCluster())
	b = append(b, `,"topic":`...)
	b = appendJSONString(b, at.Source.GetTopic())
	b = append(b, `,"partition":`...)
	b = strconv.AppendInt(b, int64(at.Source.GetPartition()), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, at.Offset, 10)
	b = append(b, `,"timestamp":`...)
	b = strconv.AppendInt(b, r.TimestampMs, 10)
	b = append(b, ',')
	b = appendJSONBytes(b, "key", r.Key)
	b = append(b, ',')
	b = appendJSONBytes(b, "value", r.Value)
	b = append(b, `,"headers":[`...)
	for i := range r.Headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		b = appendJSONBytes(b, "name", r.Headers[i].Name)
		b = append(b, ',')
		b = appendJSONBytes(b, "value", r.Headers[i].Value)
		b = append(b, '}')
	}
	return append(b, "]}\n"...)
}

// appendJSONBytes appends a member of an object.
func appendJSONBytes(b []byte, name string, v []byte) []byte {
	b = append(b, '"')
	b = append(b, name...)
	switch {
	case v == nil:
		return append(b, `":null`...)
	case !utf8.Valid(v):
		b = append(b, `_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, v)
		return append(b, '"')
	}
	b = append(b, `":`...)
	return appendJSONString(b, v)
}

// appendJSONString appends s, which is UTF-8, quoted.
func appendJSONString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	done := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[done:i]...)
		done = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, s[done:]...)
	return append(b, '"')
}
