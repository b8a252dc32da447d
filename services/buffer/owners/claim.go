package owners

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spillwayio/spillway/services/internal/shards"
)

// Protocol is the name under which buffers divide shards. Another one is another way to divide;
// a group uses one that all its members know.
const Protocol = "spillway-shards-1"

// ProtocolType is the protocol type of groups of buffers.
const ProtocolType = "spillway"

// formatVersion is that of claims and shares. Readers ignore fields that they do not know, and
// refuse a later version.
const formatVersion = 1

// State is what a buffer does with a shard that it holds.
type State string

// The states of a shard at its owner.
const (
	Opening State = "opening" // takes it over and reads its ledger
	Open    State = "open"    // serves it
	Closing State = "closing" // has been told to give it up
)

// claim is what a member tells the leader when it joins.
type claim struct {
	Version   int    `json:"version"`
	Advertise string `json:"advertise"` // where the buffer is reached
	Program   string `json:"program"`   // its version, for people
	Shards    int    `json:"shards"`    // how many the queue has, by the buffer's configuration
	Most      int    `json:"most"`      // how many the member may have; 0: all
	Joins     int    `json:"joins"`     // makes each claim another one: Kafka ignores what does not change
	AgeMillis int64  `json:"age_ms"`    // of the process
	// Held are the shards that the member has, whatever it does with them.
	Held []held `json:"held,omitempty"`
	// Unable are those that it cannot serve, as far as it has tried lately.
	Unable []inability `json:"unable,omitempty"`
	// Wishes are members, by shard, that a shard which was given up was meant for.
	Wishes map[int]string `json:"wishes,omitempty"`
	// Draining is set by a member that is to have no shard.
	Draining bool `json:"draining,omitempty"`
}

// held is a shard that a member has.
type held struct {
	Shard     int    `json:"shard"`
	State     State  `json:"state"`
	Epoch     uint64 `json:"epoch"` // 0 while it is not open
	AgeMillis int64  `json:"age_ms"`
}

// inability is a shard that a member cannot serve.
type inability struct {
	Shard     int    `json:"shard"`
	Reason    string `json:"reason"`
	AgeMillis int64  `json:"age_ms"`
}

// share is what the leader tells a member.
type share struct {
	Version int   `json:"version"`
	Mine    []int `json:"mine"`
	// Refused is why the member is given nothing.
	Refused string `json:"refused,omitempty"`
	// Members are the addresses of all members.
	Members []string `json:"members"`
	// Room is how many more shards each of them may be given.
	Room []int `json:"room"`
	// Owners are the shards' owners, as indexes of Members; -1 where there is none. Kafka keeps
	// all shares of a group in one record of a megabyte at most.
	Owners []int `json:"owners"`
	// Epochs are those of the owners when they joined; 0 where a shard was not open.
	Epochs []uint64 `json:"epochs"`
}

// owner is the address of a shard's owner, or "".
func (s *share) owner(shard int) string {
	if shard >= len(s.Owners) || s.Owners[shard] < 0 || s.Owners[shard] >= len(s.Members) {
		return ""
	}
	return s.Members[s.Owners[shard]]
}

// room is how many more shards the members at an address may be given.
func (s *share) room(address string) int {
	at := slices.Index(s.Members, address)
	if at < 0 || at >= len(s.Room) {
		return 0
	}
	return s.Room[at]
}

// epoch is that of a shard's owner, or 0.
func (s *share) epoch(shard int) uint64 {
	if shard >= len(s.Epochs) {
		return 0
	}
	return s.Epochs[shard]
}

func parseClaim(b []byte) (claim, error) {
	var c claim
	if err := json.Unmarshal(b, &c); err != nil {
		return claim{}, fmt.Errorf("read a member's claim: %w", err)
	}
	if c.Version > formatVersion {
		return claim{}, fmt.Errorf("read a member's claim: it is of version %d, and this program knows %d", c.Version, formatVersion)
	}
	if c.Shards < 1 || c.Shards > shards.Max {
		return claim{}, fmt.Errorf("read a member's claim: the queue has %d shards there", c.Shards)
	}
	return c, nil
}

func parseShare(b []byte) (share, error) {
	var s share
	if len(b) == 0 {
		return share{Refused: "the group's leader has left this buffer out"}, nil
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return share{}, fmt.Errorf("read the leader's division: %w", err)
	}
	if s.Version > formatVersion {
		return share{}, fmt.Errorf("read the leader's division: it is of version %d, and this program knows %d", s.Version, formatVersion)
	}
	return s, nil
}
