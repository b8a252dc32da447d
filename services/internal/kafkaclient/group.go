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
}

// Group is a membership in a consumer group, by the classic protocol with eager rebalances.
// kafka-go's ConsumerGroup is not used: it sends member metadata of version 1 without the field
// that makes it version 1, which ends Java consumers in the same group, and it asks one broker
// after the other without remembering which one is silent.
//
// One goroutine joins; Heartbeat and Commit may be called by others meanwhile.
type Group struct {
	client     *Client
	cfg        GroupConfig
	member     string // empty: not known to the coordinator
	generation int32
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
func NewGroup(client *Client, cfg GroupConfig) *Group { return &Group{client: client, cfg: cfg} }

// ErrOtherProtocol is returned by Join when the other members divide partitions in ways that a
// Group cannot.
var ErrOtherProtocol = errors.New("the group's other members use none of the strategies range and roundrobin, or are no consumers (cooperative-sticky is a strategy of its own); give the source a group of its own")

// Join enters the group, or enters its next generation, and returns what the member is given. It
// waits for the other members, up to RebalanceTimeout.
func (g *Group) Join(ctx context.Context) (*Assignment, error) {
	joined, err := g.join(ctx)
	if err != nil {
		return nil, err
	}
	g.generation = joined.Generation
	protocol := value(joined.Protocol)
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID = g.cfg.Group, joined.Generation, g.member
	sync.ProtocolType, sync.Protocol = kmsg.StringPtr("consumer"), kmsg.StringPtr(protocol)
	var divided map[string]int
	if joined.LeaderID == g.member && !joined.SkipAssignment {
		if sync.GroupAssignment, divided, err = g.divide(ctx, protocol, joined.Members); err != nil {
			return nil, err
		}
	}
	answer, err := g.ask(ctx, sync, g.cfg.RebalanceTimeout+answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("sync group %s: %w", g.cfg.Group, err)
	}
	response := answer.(*kmsg.SyncGroupResponse)
	if err := g.checked(response.ErrorCode); err != nil {
		return nil, fmt.Errorf("sync group %s: %w", g.cfg.Group, err)
	}
	partitions, err := parseAssignment(response.MemberAssignment)
	if err != nil {
		return nil, fmt.Errorf("sync group %s: assignment by the leader %s: %w", g.cfg.Group, joined.LeaderID, err)
	}
	return &Assignment{Generation: joined.Generation, Member: g.member, Partitions: partitions, Protocol: protocol, Divided: divided}, nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (g *Group) join(ctx context.Context) (*kmsg.JoinGroupResponse, error) {
	request := kmsg.NewPtrJoinGroupRequest()
	request.Group, request.ProtocolType = g.cfg.Group, "consumer"
	request.SessionTimeoutMillis = int32(g.cfg.SessionTimeout.Milliseconds())
	request.RebalanceTimeoutMillis = int32(g.cfg.RebalanceTimeout.Milliseconds())
	metadata := encodeSubscription(g.cfg.Topics)
	for _, b := range balancers {
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name, p.Metadata = b.ProtocolName(), metadata
		request.Protocols = append(request.Protocols, p)
	}
	const attempts = 3 // one as a former member, one for a member id, one with it
	for attempt := 1; ; attempt++ {
		request.MemberID = g.member
		answer, err := g.ask(ctx, request, g.cfg.RebalanceTimeout+answerTimeout)
		if err != nil {
			return nil, fmt.Errorf("join group %s: %w", g.cfg.Group, err)
		}
		response := answer.(*kmsg.JoinGroupResponse)
		err = g.checked(response.ErrorCode)
		switch {
		case err == nil:
			g.member = response.MemberID
			return response, nil
		case errors.Is(err, kafka.MemberIDRequired):
			g.member = response.MemberID
		case errors.Is(err, kafka.InconsistentGroupProtocol):
			return nil, fmt.Errorf("join group %s: %w: %w", g.cfg.Group, ErrOtherProtocol, err)
		case !errors.Is(err, kafka.UnknownMemberId):
			return nil, fmt.Errorf("join group %s: %w", g.cfg.Group, err)
		}
		if attempt == attempts {
			return nil, fmt.Errorf("join group %s: %w", g.cfg.Group, err)
		}
	}
}

// checked is the error of an answer's code. It forgets what the code says is out of date.
func (g *Group) checked(code int16) error {
	err := described(code, "")
	switch {
	case errors.Is(err, kafka.NotCoordinatorForGroup), errors.Is(err, kafka.GroupCoordinatorNotAvailable):
		g.client.transport.ForgetCoordinators(g.cfg.Group)
	case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.IllegalGeneration):
		g.member, g.generation = "", -1
	}
	return err
}

// Lost says whether an error of Heartbeat or Commit means that the generation is over: Join
// enters the next one.
func Lost(err error) bool {
	return errors.Is(err, kafka.RebalanceInProgress) || errors.Is(err, kafka.UnknownMemberId) || errors.Is(err, kafka.IllegalGeneration)
}

// Heartbeat tells the coordinator that the member of a generation is alive.
func (g *Group) Heartbeat(ctx context.Context, a *Assignment) error {
	request := kmsg.NewPtrHeartbeatRequest()
	request.Group, request.Generation, request.MemberID = g.cfg.Group, a.Generation, a.Member
	answer, err := g.ask(ctx, request, g.cfg.SessionTimeout/2)
	if err == nil {
		err = g.coordinator(answer.(*kmsg.HeartbeatResponse).ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("heartbeat to group %s: %w", g.cfg.Group, err)
	}
	return nil
}

// coordinator is checked without touching the membership, for calls beside Join.
func (g *Group) coordinator(code int16) error {
	err := described(code, "")
	if errors.Is(err, kafka.NotCoordinatorForGroup) || errors.Is(err, kafka.GroupCoordinatorNotAvailable) {
		g.client.transport.ForgetCoordinators(g.cfg.Group)
	}
	return err
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

// Leave ends the membership. It is no error that there is none.
func (g *Group) Leave(ctx context.Context) error {
	if g.member == "" {
		return nil
	}
	return g.client.LeaveGroup(ctx, g.cfg.Group, g.member)
}

// Foreign returns the client ids of the group's members that do not begin as ours do, sorted,
// each once.
func (g *Group) Foreign(ctx context.Context) ([]string, error) {
	request := kmsg.NewPtrDescribeGroupsRequest()
	request.Groups = []string{g.cfg.Group}
	answer, err := g.ask(ctx, request, answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("describe group %s: %w", g.cfg.Group, err)
	}
	var foreign []string
	for _, described := range answer.(*kmsg.DescribeGroupsResponse).Groups {
		if err := g.coordinator(described.ErrorCode); err != nil {
			return nil, fmt.Errorf("describe group %s: %w", g.cfg.Group, err)
		}
		for _, m := range described.Members {
			if !strings.HasPrefix(m.ClientID, g.cfg.Ours) {
				foreign = append(foreign, m.ClientID)
			}
		}
	}
	slices.Sort(foreign)
	return slices.Compact(foreign), nil
}

// capped is a request that is not sent in a version above max.
type capped struct {
	kmsg.Request
	max int16
}

// MaxVersion implements kmsg.Request.
func (c capped) MaxVersion() int16 { return min(c.max, c.Request.MaxVersion()) }

// toCoordinator is a request that a group's coordinator answers.
type toCoordinator struct {
	encoded
	group string
}

// Group implements protocol.GroupMessage.
func (t *toCoordinator) Group() string { return t.group }

func (g *Group) ask(ctx context.Context, request kmsg.Request, patience time.Duration) (kmsg.Response, error) {
	answer, err := g.client.transport.Do(ctx, &toCoordinator{encoded{Request: request}, g.cfg.Group}, patience)
	if err != nil {
		return nil, err
	}
	return answer.(*encoded).Response, nil
}

// balancers divide partitions, in the order of preference.
var balancers = []kafka.GroupBalancer{kafka.RangeGroupBalancer{}, kafka.RoundRobinGroupBalancer{}}

// divide gives the topics' partitions to the members, as the group's leader. It also returns how
// many partitions of this member's topics there were: fewer than there are when a broker's answer
// leaves out some, or the topic.
func (g *Group) divide(ctx context.Context, protocol string, members []kmsg.JoinGroupResponseMember) ([]kmsg.SyncGroupRequestGroupAssignment, map[string]int, error) {
	at := slices.IndexFunc(balancers, func(b kafka.GroupBalancer) bool { return b.ProtocolName() == protocol })
	if at < 0 {
		return nil, nil, fmt.Errorf("divide the partitions of group %s: the coordinator chose %q: %w", g.cfg.Group, protocol, ErrOtherProtocol)
	}
	var all []kafka.GroupMember
	wanted := make(map[string]bool)
	for _, m := range members {
		topics, err := parseSubscription(m.ProtocolMetadata)
		if err != nil {
			return nil, nil, fmt.Errorf("divide the partitions of group %s: metadata of member %s: %w", g.cfg.Group, m.MemberID, err)
		}
		all = append(all, kafka.GroupMember{ID: m.MemberID, Topics: topics})
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
	var assignments []kmsg.SyncGroupRequestGroupAssignment
	for _, m := range all {
		a := kmsg.NewSyncGroupRequestGroupAssignment()
		a.MemberID, a.MemberAssignment = m.ID, encodeAssignment(divided[m.ID])
		assignments = append(assignments, a)
	}
	return assignments, counts, nil
}
