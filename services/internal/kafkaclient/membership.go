package kafkaclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// MembershipConfig describes a membership in a group.
type MembershipConfig struct {
	Group string
	// Type is the protocol type of the group, such as "consumer". All its members have the same.
	Type string
	// Protocols are the ways to divide that the member knows, the preferred one first.
	Protocols []string
	// SessionTimeout is after what silence Kafka takes a member for dead.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long members have to join again when the group divides anew.
	RebalanceTimeout time.Duration
}

// Membership is a membership in a group, by the classic protocol with eager rebalances. What the
// group divides, and how, is up to its members.
//
// One goroutine joins and leaves; the other methods may be called by others meanwhile.
type Membership struct {
	client *Client
	cfg    MembershipConfig
	member string // empty: not known to the coordinator
}

// NewMembership is not a member yet.
func NewMembership(client *Client, cfg MembershipConfig) *Membership {
	return &Membership{client: client, cfg: cfg}
}

// Generation is what the group gives a member until it divides anew.
type Generation struct {
	Number int32
	Member string // as the group knows this one
	// Protocol is the way to divide that all members know.
	Protocol string
	// Leader is the member that divided.
	Leader     string
	Assignment []byte
}

// GroupMember is a member of a group as its leader sees it.
type GroupMember struct {
	ID       string
	Metadata []byte // as given to Join
}

// Divide is what the leader of a group does: it returns an assignment for each member.
type Divide func(ctx context.Context, protocol string, members []GroupMember) (map[string][]byte, error)

// Join enters the group, or enters its next generation, with metadata for the leader, and returns
// what the member is given. It waits for the other members, up to RebalanceTimeout. When this
// member leads, it calls divide.
func (m *Membership) Join(ctx context.Context, metadata []byte, divide Divide) (*Generation, error) {
	joined, err := m.join(ctx, metadata)
	if err != nil {
		return nil, err
	}
	protocol := value(joined.Protocol)
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID = m.cfg.Group, joined.Generation, m.member
	sync.ProtocolType, sync.Protocol = kmsg.StringPtr(m.cfg.Type), kmsg.StringPtr(protocol)
	if joined.LeaderID == m.member && !joined.SkipAssignment {
		var members []GroupMember
		for _, j := range joined.Members {
			members = append(members, GroupMember{j.MemberID, j.ProtocolMetadata})
		}
		divided, err := divide(ctx, protocol, members)
		if err != nil {
			return nil, err
		}
		for _, j := range members {
			a := kmsg.NewSyncGroupRequestGroupAssignment()
			a.MemberID, a.MemberAssignment = j.ID, divided[j.ID]
			sync.GroupAssignment = append(sync.GroupAssignment, a)
		}
	}
	answer, err := m.ask(ctx, sync, m.cfg.RebalanceTimeout+answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("sync group %s: %w", m.cfg.Group, err)
	}
	response := answer.(*kmsg.SyncGroupResponse)
	if err := m.checked(response.ErrorCode); err != nil {
		return nil, fmt.Errorf("sync group %s: %w", m.cfg.Group, err)
	}
	return &Generation{Number: joined.Generation, Member: m.member, Protocol: protocol, Leader: joined.LeaderID, Assignment: response.MemberAssignment}, nil
}

func (m *Membership) join(ctx context.Context, metadata []byte) (*kmsg.JoinGroupResponse, error) {
	request := kmsg.NewPtrJoinGroupRequest()
	request.Group, request.ProtocolType = m.cfg.Group, m.cfg.Type
	request.SessionTimeoutMillis = int32(m.cfg.SessionTimeout.Milliseconds())
	request.RebalanceTimeoutMillis = int32(m.cfg.RebalanceTimeout.Milliseconds())
	for _, name := range m.cfg.Protocols {
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name, p.Metadata = name, metadata
		request.Protocols = append(request.Protocols, p)
	}
	const attempts = 3 // one as a former member, one for a member id, one with it
	for attempt := 1; ; attempt++ {
		request.MemberID = m.member
		answer, err := m.ask(ctx, request, m.cfg.RebalanceTimeout+answerTimeout)
		if err != nil {
			return nil, fmt.Errorf("join group %s: %w", m.cfg.Group, err)
		}
		response := answer.(*kmsg.JoinGroupResponse)
		err = m.checked(response.ErrorCode)
		switch {
		case err == nil:
			m.member = response.MemberID
			return response, nil
		case errors.Is(err, kafka.MemberIDRequired):
			m.member = response.MemberID
		case !errors.Is(err, kafka.UnknownMemberId):
			return nil, fmt.Errorf("join group %s: %w", m.cfg.Group, err)
		}
		if attempt == attempts {
			return nil, fmt.Errorf("join group %s: %w", m.cfg.Group, err)
		}
	}
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// checked is the error of an answer's code. It forgets what the code says is out of date.
func (m *Membership) checked(code int16) error {
	err := m.coordinator(code)
	if errors.Is(err, kafka.UnknownMemberId) || errors.Is(err, kafka.IllegalGeneration) {
		m.member = ""
	}
	return err
}

// coordinator is checked without touching the membership, for calls beside Join.
func (m *Membership) coordinator(code int16) error {
	err := described(code, "")
	if errors.Is(err, kafka.NotCoordinatorForGroup) || errors.Is(err, kafka.GroupCoordinatorNotAvailable) {
		m.client.transport.ForgetCoordinators(m.cfg.Group)
	}
	return err
}

// Lost says whether an error of a member's request means that the generation is over: Join enters
// the next one.
func Lost(err error) bool {
	return errors.Is(err, kafka.RebalanceInProgress) || errors.Is(err, kafka.UnknownMemberId) || errors.Is(err, kafka.IllegalGeneration)
}

// Heartbeat tells the coordinator that the member of a generation is alive.
func (m *Membership) Heartbeat(ctx context.Context, g *Generation) error {
	request := kmsg.NewPtrHeartbeatRequest()
	request.Group, request.Generation, request.MemberID = m.cfg.Group, g.Number, g.Member
	answer, err := m.ask(ctx, request, m.cfg.SessionTimeout/2)
	if err == nil {
		err = m.coordinator(answer.(*kmsg.HeartbeatResponse).ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("heartbeat to group %s: %w", m.cfg.Group, err)
	}
	return nil
}

// Leave ends the membership. It is no error that there is none.
func (m *Membership) Leave(ctx context.Context) error {
	if m.member == "" {
		return nil
	}
	return m.client.LeaveGroup(ctx, m.cfg.Group, m.member)
}

// describe asks who the group's members are. Its answer has Kafka's words for an error.
func (m *Membership) describe(ctx context.Context) ([]kmsg.DescribeGroupsResponseGroupMember, error) {
	request := kmsg.NewPtrDescribeGroupsRequest()
	request.Groups = []string{m.cfg.Group}
	answer, err := m.ask(ctx, request, answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("describe group %s: %w", m.cfg.Group, err)
	}
	var members []kmsg.DescribeGroupsResponseGroupMember
	for _, described := range answer.(*kmsg.DescribeGroupsResponse).Groups {
		if err := m.coordinator(described.ErrorCode); err != nil {
			return nil, fmt.Errorf("describe group %s: %w", m.cfg.Group, err)
		}
		members = append(members, described.Members...)
	}
	return members, nil
}

// toCoordinator is a request that a group's coordinator answers.
type toCoordinator struct {
	encoded
	group string
}

// Group implements protocol.GroupMessage.
func (t *toCoordinator) Group() string { return t.group }

func (m *Membership) ask(ctx context.Context, request kmsg.Request, patience time.Duration) (kmsg.Response, error) {
	answer, err := m.client.transport.Do(ctx, &toCoordinator{encoded{Request: request}, m.cfg.Group}, patience)
	if err != nil {
		return nil, err
	}
	return answer.(*encoded).Response, nil
}
