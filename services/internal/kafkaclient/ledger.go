package kafkaclient

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Ledger says for which data a member of a group reads. Members that read for different data each
// get a part of the partitions, and none of the data is whole.
type Ledger struct {
	Queue string `json:"queue"`
	// Lives are the random names of the data of the queue's shards; empty: not known.
	Lives []string `json:"lives"`
}

// known says whether the ledger proves anything.
func (l Ledger) known() bool {
	return slices.ContainsFunc(l.Lives, func(life string) bool { return life != "" })
}

// Differs says whether two ledgers are known to be of different data.
func (l Ledger) Differs(o Ledger) bool {
	return l.compare(o, func(a, b string) bool { return a != b })
}

// Same says whether two ledgers are known to be of the same data.
func (l Ledger) Same(o Ledger) bool {
	return !l.Differs(o) && l.compare(o, func(a, b string) bool { return a == b })
}

// compare says whether what is known of some shard in both holds.
func (l Ledger) compare(o Ledger, holds func(a, b string) bool) bool {
	for i := range min(len(l.Lives), len(o.Lives)) {
		if a, b := l.Lives[i], o.Lives[i]; a != "" && b != "" && holds(a, b) {
			return true
		}
	}
	return false
}

// String names the ledger for people.
func (l Ledger) String() string {
	known := slices.DeleteFunc(slices.Clone(l.Lives), func(life string) bool { return life == "" })
	const most = 3
	if len(known) > most {
		known = append(known[:most:most], "…")
	}
	return fmt.Sprintf("queue %s with the data %s", l.Queue, strings.Join(known, ", "))
}

// Peer is a member of a group as another one sees it.
type Peer struct {
	Name   string   `json:"name"` // its client id, or its member id
	Host   string   `json:"host,omitempty"`
	Topics []string `json:"topics"`
	Ledger Ledger   `json:"ledger"` // not known of other consumers, and of versions before
}

// rivals says whether both read a topic, for different data.
func (p *Peer) rivals(o *Peer) bool {
	return p.Ledger.Differs(o.Ledger) && slices.ContainsFunc(p.Topics, func(t string) bool { return slices.Contains(o.Topics, t) })
}

// RivalError is about a group that reads the same topics for other data.
type RivalError struct {
	Group string
	Own   Ledger
	Rival Peer
}

// Error implements error.
func (e *RivalError) Error() string {
	from := ""
	if e.Rival.Host != "" {
		from = " from " + strings.TrimPrefix(e.Rival.Host, "/")
	}
	return fmt.Sprintf("group %s is another pipeline's: its member %s%s reads for %s, and this source for %s, so that each would get a part of the partitions only; "+
		"give one of the two sources a group of its own", e.Group, e.Rival.Name, from, e.Rival.Ledger, e.Own)
}

// userData is what members of Spillway tell in the field that the protocol leaves to them.
type userData struct {
	Ledger *Ledger `json:"spillway,omitempty"` // in a subscription
	// Rival is in the assignment of a member that is given nothing because of it.
	Rival *Peer `json:"spillway_rival,omitempty"`
}

func (u userData) encode() []byte {
	if u.Ledger == nil && u.Rival == nil {
		return nil
	}
	b, err := json.Marshal(u)
	if err != nil {
		panic(err) // strings only
	}
	return b
}

// parseUserData knows nothing of what others write.
func parseUserData(b []byte) (u userData) {
	if json.Unmarshal(b, &u) != nil {
		return userData{}
	}
	return u
}
