package serializer

import "github.com/spillwayio/spillway/services/internal/recordbatch"

// fewHeaders is how many headers are compared with each other; more are looked up in a map.
const fewHeaders = 32

// eventHeaders says which headers the event has that a record becomes. As with Flume's Kafka
// source they are timestamp, topic, partition and offset, unless the record has its own of that
// name, and the record's key, if it has one, as key. To these come the record's own headers; of
// several with one name it is the first, as in the templates of paths.
type eventHeaders struct {
	timestamp, topic, partition, offset, key bool

	own   int // those of the record's for which has is true
	first map[string]int
}

func eventHeadersOf(r *recordbatch.Record) eventHeaders {
	h := eventHeaders{timestamp: true, topic: true, partition: true, offset: true, key: r.Key != nil}
	if len(r.Headers) > fewHeaders {
		h.first = make(map[string]int, len(r.Headers))
	}
	for i := range r.Headers {
		name := r.Headers[i].Name
		if h.first != nil {
			if _, there := h.first[string(name)]; !there {
				h.first[string(name)] = i
			}
		}
		switch string(name) {
		case "timestamp":
			h.timestamp = false
		case "topic":
			h.topic = false
		case "partition":
			h.partition = false
		case "offset":
			h.offset = false
		}
		if h.has(r, i) {
			h.own++
		}
	}
	return h
}

// has says whether the event has the i-th header of r.
func (h *eventHeaders) has(r *recordbatch.Record, i int) bool {
	name := r.Headers[i].Name
	if h.key && string(name) == "key" {
		return false
	}
	if h.first != nil {
		return h.first[string(name)] == i
	}
	for j := range r.Headers[:i] {
		if string(r.Headers[j].Name) == string(name) {
			return false
		}
	}
	return true
}

// count is the number of headers of the event; never 0.
func (h *eventHeaders) count() int {
	n := h.own
	for _, there := range [...]bool{h.timestamp, h.topic, h.partition, h.offset, h.key} {
		if there {
			n++
		}
	}
	return n
}
