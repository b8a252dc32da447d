package kafkaclient

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// The metadata of a consumer in version 1, and an assignment in version 0, which all consumers
// read (big endian):
//
//	subscription: version int16 | topics int32 | name string... | user data int32, -1 for null |
//	              [v1: owned partitions int32 | (topic string | partitions int32 | partition int32...)...]
//	assignment:   version int16 | topics int32 | (name string | partitions int32 | partition int32...)... |
//	              user data int32, -1 for null
//
// A member that rebalances eagerly owns nothing while it joins. Newer versions add fields at the
// end.
func encodeSubscription(topics []string, user userData) []byte {
	b := binary.BigEndian.AppendUint16(nil, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(topics)))
	for _, t := range topics {
		b = appendString(b, t)
	}
	b = appendBytes(b, user.encode())
	return append(b, 0, 0, 0, 0)
}

// appendBytes writes nil as null.
func appendBytes(b, bytes []byte) []byte {
	if bytes == nil {
		return append(b, 255, 255, 255, 255)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(bytes))), bytes...)
}

func encodeAssignment(partitions map[string][]int, user userData) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(partitions)))
	for _, t := range slices.Sorted(maps.Keys(partitions)) {
		b = appendString(b, t)
		b = binary.BigEndian.AppendUint32(b, uint32(len(partitions[t])))
		for _, p := range partitions[t] {
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		}
	}
	return appendBytes(b, user.encode())
}

// parseSubscription returns the topics of a consumer's metadata of any version, and whose data
// they are read for.
func parseSubscription(b []byte) (topics []string, ledger Ledger, err error) {
	p := payload{rest: b}
	p.bytes(2)
	for n := p.int32(); n > 0 && !p.bad; n-- {
		topics = append(topics, p.string())
	}
	if p.bad {
		return nil, ledger, fmt.Errorf("%d bytes that are no consumer's metadata", len(b))
	}
	if user := parseUserData(p.optional()); user.Ledger != nil {
		ledger = *user.Ledger
	}
	return topics, ledger, nil
}

// parseAssignment returns the partitions of an assignment of any version, or the member because of
// which there are none. A leader that has none to give may send no assignment at all.
func parseAssignment(b []byte) (partitions map[string][]int, rival *Peer, err error) {
	partitions = make(map[string][]int)
	if len(b) == 0 {
		return partitions, nil, nil
	}
	p := payload{rest: b}
	p.bytes(2)
	for topics := p.int32(); topics > 0 && !p.bad; topics-- {
		topic := p.string()
		for n := p.int32(); n > 0 && !p.bad; n-- {
			partitions[topic] = append(partitions[topic], int(p.int32()))
		}
	}
	if p.bad {
		return nil, nil, fmt.Errorf("%d bytes that are no consumer's assignment", len(b))
	}
	for _, all := range partitions {
		slices.Sort(all)
	}
	return partitions, parseUserData(p.optional()).Rival, nil
}

// optional reads bytes with their length before them, which may be null or missing.
func (p *payload) optional() []byte { return p.bytes(int64(p.int32())) }

func (p *payload) int32() int32 {
	if b := p.bytes(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (p *payload) string() string {
	n := p.bytes(2)
	if n == nil {
		return ""
	}
	return string(p.bytes(int64(int16(binary.BigEndian.Uint16(n)))))
}
