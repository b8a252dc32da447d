package kafkaclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// commitMark is the metadata of the offsets that a Group commits. Other consumers, and Kafka's
// tools, write another one, or none.
const commitMark = "spillway"

// GroupConfig describes a membership in a consumer group.
type GroupConfig struct {
	Group  string
	Topics []string // that the member reads
	// SessionTimeout is after what silence Kafka gives a member's partitions to others.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long members have to join again when the group divides its
	// partitions anew.
	RebalanceTimeout time.Duration
	// Ours is how the client ids of members begin that are not foreign to the group.
	Ours string
	// Ledger says for which data the member reads, as far as it is known when it joins; nil: it
	// does not tell.
	Ledger func() Ledger
}

// Group is a membership in a consumer group.
// kafka-go's ConsumerGroup is not used: it sends member metadata of version 1 without the field
// that makes it version 1, which ends Java consumers in the same group, and it asks one broker
// after the other without remembering which one is silent.
//
// One goroutine joins; Heartbeat and Commit may be called by others meanwhile.
type Group struct {
	*Membership
	cfg  GroupConfig
	told Ledger // when it joined last
}

// Assignment is what the group gives a member in one generation.
type Assignment struct {
	Generation int32
	Member     string
	Partitions map[string][]int // by topic, sorted
	// Protocol is how the partitions were divided: "range" or "roundrobin".
	Protocol string
	// Divided is how many partitions of each of the member's topics were divided, as far as there
	// were any; nil when another member did that.
	Divided map[string]int
}

// NewGroup is not a member yet.
func NewGroup(client *Client, cfg GroupConfig) *Group {
	m := MembershipConfig{Group: cfg.Group, Type: "consumer", SessionTimeout: cfg.SessionTimeout, RebalanceTimeout: cfg.RebalanceTimeout}
	for _, b := range balancers {
		m.Protocols = append(m.Protocols, b.ProtocolName())
	}
	return &Group{Membership: NewMembership(client, m), cfg: cfg}
}

// ErrOtherProtocol is returned by Join when the other members divide partitions in ways that a
// Group cannot.
var ErrOtherProtocol = errors.New("the group's other members use none of the strategies range and roundrobin, or are no consumers (cooperative-sticky is a strategy of its own); give the source a group of its own")

// Join enters the group, or enters its next generation, and returns what the member is given. It
// waits for the other members, up to RebalanceTimeout. A RivalError says that the group's leader
// reads for other data: the member is in the group, and has nothing.
func (g *Group) Join(ctx context.Context) (*Assignment, error) {
	var user userData
	if g.told = g.ledger(); g.told.known() {
		user.Ledger = &g.told
	}
	var divided map[string]int
	generation, err := g.Membership.Join(ctx, encodeSubscription(g.cfg.Topics, user), func(ctx context.Context, protocol string, members []GroupMember) (all map[string][]byte, err error) {
		all, divided, err = g.divide(ctx, protocol, members)
		return all, err
	})
	if errors.Is(err, kafka.InconsistentGroupProtocol) {
		err = fmt.Errorf("%w: %w", ErrOtherProtocol, err)
	}
	if err != nil {
		return nil, err
	}
	partitions, rival, err := parseAssignment(generation.Assignment)
	if err != nil {
		return nil, fmt.Errorf("sync group %s: assignment by the leader %s: %w", g.cfg.Group, generation.Leader, err)
	}
	if rival != nil {
		return nil, &RivalError{g.cfg.Group, g.told, *rival}
	}
	return &Assignment{Generation: generation.Number, Member: generation.Member, Partitions: partitions, Protocol: generation.Protocol, Divided: divided}, nil
}

// Heartbeat tells the coordinator that the member of a generation is alive.
func (g *Group) Heartbeat(ctx context.Context, a *Assignment) error {
	return g.Membership.Heartbeat(ctx, &Generation{Number: a.Generation, Member: a.Member})
}

// Commit commits offsets as the member of a generation. It returns the first error by partition,
// and calls done for the partitions whose offset was taken.
func (g *Group) Commit(ctx context.Context, a *Assignment, offsets map[string]map[int]int64, done func(topic string, partition int, offset int64)) error {
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group, request.Generation, request.MemberID = g.cfg.Group, a.Generation, a.Member
	request.RetentionTimeMillis = -1
	for topic, partitions := range offsets {
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = topic
		for partition, offset := range partitions {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = int32(partition), offset, -1, kmsg.StringPtr(commitMark)
			t.Partitions = append(t.Partitions, p)
		}
		request.Topics = append(request.Topics, t)
	}
	const lastWithNames = 9
	answer, err := g.ask(ctx, capped{request, lastWithNames}, answerTimeout)
	if err != nil {
		return fmt.Errorf("commit offsets of group %s: %w", g.cfg.Group, err)
	}
	var failed error
	for _, t := range answer.(*kmsg.OffsetCommitResponse).Topics {
		for _, p := range t.Partitions {
			if err := g.coordinator(p.ErrorCode); err != nil {
				failed = cmp.Or(failed, fmt.Errorf("commit offset of %s/%d: %w", t.Topic, p.Partition, err))
				continue
			}
			done(t.Topic, int(p.Partition), offsets[t.Topic][int(p.Partition)])
		}
	}
	return failed
}

// Committed is a partition's offset that the group has in Kafka.
type Committed struct {
	Offset int64 // negative: none
	// Ours says that a Group committed it, and not another consumer or a tool.
	Ours bool
}

// Committed returns what the group has committed in partitions.
func (g *Group) Committed(ctx context.Context, partitions map[string][]int) (map[string]map[int]Committed, error) {
	all := make(map[string]map[int]Committed)
	if len(partitions) == 0 {
		return all, nil
	}
	request := kmsg.NewPtrOffsetFetchRequest()
	request.Group = g.cfg.Group
	for _, topic := range slices.Sorted(maps.Keys(partitions)) {
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic = topic
		for _, p := range partitions[topic] {
			t.Partitions = append(t.Partitions, int32(p))
		}
		request.Topics = append(request.Topics, t)
	}
	const lastOfOneGroup = 7
	answer, err := g.ask(ctx, capped{request, lastOfOneGroup}, answerTimeout)
	if err == nil {
		err = g.coordinator(answer.(*kmsg.OffsetFetchResponse).ErrorCode)
	}
	if err != nil {
		return nil, fmt.Errorf("read what group %s has committed: %w", g.cfg.Group, err)
	}
	for _, t := range answer.(*kmsg.OffsetFetchResponse).Topics {
		all[t.Topic] = make(map[int]Committed)
		for _, p := range t.Partitions {
			if err := g.coordinator(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("read what group %s has committed in %s/%d: %w", g.cfg.Group, t.Topic, p.Partition, err)
			}
			all[t.Topic][int(p.Partition)] = Committed{p.Offset, value(p.Metadata) == commitMark}
		}
	}
	return all, nil
}

// Members are the other members of a group.
type Members struct {
	// Foreign are the client ids of those that do not begin as ours do, sorted, each once.
	Foreign []string
	// Rivals read the same topics for other data than this member does now.
	Rivals []Peer
	// Same says that one is known to read for the same data.
	Same bool
}

// Members asks the coordinator for the other members. While the group divides its partitions
// nobody knows for which data they read.
func (g *Group) Members(ctx context.Context) (*Members, error) {
	all, err := g.describe(ctx)
	if err != nil {
		return nil, err
	}
	members, own := &Members{}, Peer{Topics: g.cfg.Topics, Ledger: g.ledger()}
	for _, m := range all {
		if !strings.HasPrefix(m.ClientID, g.cfg.Ours) {
			members.Foreign = append(members.Foreign, m.ClientID)
			continue
		}
		topics, ledger, err := parseSubscription(m.ProtocolMetadata)
		if err != nil || m.MemberID == g.member {
			continue // the metadata are left out of some answers
		}
		other := Peer{m.ClientID, m.ClientHost, topics, ledger}
		if own.rivals(&other) {
			members.Rivals = append(members.Rivals, other)
		}
		members.Same = members.Same || own.Ledger.Same(ledger)
	}
	slices.Sort(members.Foreign)
	members.Foreign = slices.Compact(members.Foreign)
	return members, nil
}

// Rival is the error about the first of the rivals; nil when there is none.
func (g *Group) Rival(members *Members) error {
	if len(members.Rivals) == 0 {
		return nil
	}
	return &RivalError{g.cfg.Group, g.ledger(), members.Rivals[0]}
}

// OutOfDate says whether the data is known to be other than the group was told: it has to be told
// by joining again.
func (g *Group) OutOfDate() bool { return g.told.Differs(g.ledger()) }

func (g *Group) ledger() Ledger {
	if g.cfg.Ledger == nil {
		return Ledger{}
	}
	return g.cfg.Ledger()
}

// capped is a request that is not sent in a version above max.
type capped struct {
	kmsg.Request
	max int16
}

// MaxVersion implements kmsg.Request.
func (c capped) MaxVersion() int16 { return min(c.max, c.Request.MaxVersion()) }

// balancers divide partitions, in the order of preference.
var balancers = []kafka.GroupBalancer{kafka.RangeGroupBalancer{}, kafka.RoundRobinGroupBalancer{}}

// divide gives the topics' partitions to the members, as the group's leader. It also returns how
// many partitions of this member's topics there were: fewer than there are when a broker's answer
// leaves out some, or the topic.
func (g *Group) divide(ctx context.Context, protocol string, members []GroupMember) (map[string][]byte, map[string]int, error) {
	at := slices.IndexFunc(balancers, func(b kafka.GroupBalancer) bool { return b.ProtocolName() == protocol })
	if at < 0 {
		return nil, nil, fmt.Errorf("divide the partitions of group %s: the coordinator chose %q: %w", g.cfg.Group, protocol, ErrOtherProtocol)
	}
	// Who leads the group has been in it for longest: so those that read for other data get
	// nothing.
	members = slices.Clone(members)
	slices.SortStableFunc(members, func(a, b GroupMember) int { return cmp.Compare(rank(a.ID == g.member), rank(b.ID == g.member)) })
	var all []kafka.GroupMember
	var readers []*Peer
	assignments := make(map[string][]byte, len(members))
	wanted := make(map[string]bool)
	for _, m := range members {
		topics, ledger, err := parseSubscription(m.Metadata)
		if err != nil {
			return nil, nil, fmt.Errorf("divide the partitions of group %s: metadata of member %s: %w", g.cfg.Group, m.ID, err)
		}
		peer := &Peer{Name: m.ID, Topics: topics, Ledger: ledger}
		if at := slices.IndexFunc(readers, peer.rivals); at >= 0 {
			rival := *readers[at]
			rival.Topics = nil
			assignments[m.ID] = encodeAssignment(nil, userData{Rival: &rival})
			continue
		}
		readers = append(readers, peer)
		all = append(all, kafka.GroupMember{ID: m.ID, Topics: topics})
		for _, t := range topics {
			wanted[t] = true
		}
	}
	// Other members may know of partitions that were added since.
	names := slices.Sorted(maps.Keys(wanted))
	g.client.Stale(names...)
	topics, err := g.client.Leaders(ctx, names)
	if err != nil {
		return nil, nil, err
	}
	var partitions []kafka.Partition
	for _, name := range names {
		for p := range topics[name].Leaders {
			partitions = append(partitions, kafka.Partition{Topic: name, ID: p})
		}
	}
	counts := make(map[string]int, len(g.cfg.Topics))
	for _, name := range g.cfg.Topics {
		if t := topics[name]; t.Err == nil && len(t.Leaders) > 0 {
			counts[name] = len(t.Leaders)
		}
	}
	divided := balancers[at].AssignGroups(all, partitions)
	for _, m := range all {
		assignments[m.ID] = encodeAssignment(divided[m.ID], userData{})
	}
	return assignments, counts, nil
}

// rank orders what is first before the rest.
func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}
