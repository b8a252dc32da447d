package kafkasink

import (
	"fmt"
	"strings"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// maxTopicBytes is Kafka's bound of a topic's name.
const maxTopicBytes = 249

// template makes the name of the target topic. The configuration has checked the syntax: literal
// text and %{name}, where topic is the source topic and any other name is a header.
type template []templatePart

// templatePart is literal text or a name.
type templatePart struct {
	text, name string
}

func parseTemplate(s string) (template, error) {
	var t template
	for s != "" {
		text, rest, found := strings.Cut(s, "%{")
		if text != "" {
			t = append(t, templatePart{text: text})
		}
		if !found {
			break
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed || name == "" {
			return nil, fmt.Errorf("topic %q: want text and %%{name}", s)
		}
		t = append(t, templatePart{name: name})
		s = after
	}
	if len(t) == 0 {
		return nil, fmt.Errorf("topic is empty")
	}
	return t, nil
}

// perRecord says whether the records of one source topic may have different targets.
func (t template) perRecord() bool {
	for _, p := range t {
		if p.name != "" && p.name != "topic" {
			return true
		}
	}
	return false
}

// append appends the target topic of a record to dst. The problem, if there is one, is the reason
// why the record can never be delivered.
func (t template) append(dst []byte, sourceTopic string, headers []recordbatch.Header) (name []byte, problem string) {
	start := len(dst)
	for _, p := range t {
		switch p.name {
		case "":
			dst = append(dst, p.text...)
		case "topic":
			dst = append(dst, sourceTopic...)
		default:
			value, found := header(headers, p.name)
			if !found || value == nil {
				return dst, fmt.Sprintf("no target topic: the record has no header %q", p.name)
			}
			dst = append(dst, value...)
		}
	}
	return dst, topicProblem(dst[start:])
}

// TopicOf returns the target topic of a record by the template of a delivery. The problem, if
// there is one, is the reason why the record can never be delivered.
func TopicOf(text, sourceTopic string, headers []recordbatch.Header) (name, problem string) {
	t, err := parseTemplate(text)
	if err != nil {
		return "", err.Error()
	}
	b, problem := t.append(nil, sourceTopic, headers)
	return string(b), problem
}

func header(headers []recordbatch.Header, name string) ([]byte, bool) {
	for i := range headers {
		if string(headers[i].Name) == name {
			return headers[i].Value, true
		}
	}
	return nil, false
}

// topicProblem says why Kafka would refuse a topic of that name; it is empty when it would not.
func topicProblem(name []byte) string {
	switch {
	case len(name) == 0:
		return "no target topic: its name would be empty"
	case len(name) > maxTopicBytes:
		return fmt.Sprintf("no target topic: its name would have %d bytes, Kafka allows %d", len(name), maxTopicBytes)
	case string(name) == "." || string(name) == "..":
		return fmt.Sprintf("no target topic: Kafka does not allow the name %q", name)
	}
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Sprintf("no target topic: Kafka allows letters, digits, '.', '_' and '-' in names, not %q", name)
		}
	}
	return ""
}

// partitioner chooses the target partition.
type partitioner struct {
	by     partitionBy
	header string // for byHeader
}

type partitionBy int

const (
	bySource   partitionBy = iota // the source partition's number
	byKey                         // the key's hash, as Kafka's Java client has it; without a key as bySource
	byHeader                      // the hash of a header's value; without it as bySource
	roundRobin                    // a job goes to one partition, the next job to the next
)

func parsePartitioner(s, header string) (partitioner, error) {
	by, known := map[string]partitionBy{"": bySource, "source": bySource, "key": byKey, "header": byHeader, "round_robin": roundRobin}[s]
	if !known {
		return partitioner{}, fmt.Errorf("partitioner is %q: want source, key, round_robin or header", s)
	}
	return partitioner{by, header}, nil
}

// hashed is what decides on a record's partition, nil when nothing in it does.
func (p *partitioner) hashed(r *record) []byte {
	switch p.by {
	case byKey:
		return r.key
	case byHeader:
		value, _ := header(r.headers, p.header)
		return value
	}
	return nil
}

// partition is the partition of a key among count, as Kafka's Java client chooses it.
func keyPartition(key []byte, count int) int32 {
	return int32(murmur2(key)&0x7fffffff) % int32(count)
}

// murmur2 is the 32-bit MurmurHash2 with the seed of Kafka's Java client.
func murmur2(b []byte) uint32 {
	const mix = 0x5bd1e995
	h := 0x9747b28c ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= mix
		k ^= k >> 24
		h = h*mix ^ k*mix
	}
	if len(b) > 0 {
		var tail uint32
		for i, c := range b {
			tail |= uint32(c) << (8 * i)
		}
		h = (h ^ tail) * mix
	}
	h ^= h >> 13
	h *= mix
	return h ^ h>>15
}
