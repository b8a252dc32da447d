package kafkaclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	findcoordinatorapi "github.com/segmentio/kafka-go/protocol/findcoordinator"
	listoffsetsapi "github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Transport carries requests to the brokers of one cluster, in place of kafka-go's Transport.
//
//   - Every connection, its first exchange, and every answer has a time limit. A request that any broker can answer
//     goes to another one when the first does not answer; those that failed last are tried last.
//   - A broker that throttles this client is left alone for as long as it says (Throttle), and no time limit runs
//     meanwhile.
//   - Metadata is asked for when it is needed, for the topics it is needed for, and never has a topic created unless
//     the caller wants that.
//
// Requests run on their callers' goroutines. Methods may be called concurrently. Close it at the
// end.
type Transport struct {
	ClientID string

	access   Access
	throttle *Throttle

	mu           sync.Mutex // before broker.mu
	seeds        []*broker  // the configured addresses
	members      map[int32]*broker
	coordinators map[coordinated]int32
	catalog      catalog
}

// coordinated is a group, or a transactional id.
type coordinated struct {
	name string
	kind int8
}

const (
	groupKind       = int8(kafka.CoordinatorKeyTypeConsumer)
	transactionKind = int8(kafka.CoordinatorKeyTypeTransaction)
)

// Transport returns a transport for a cluster, which connects to nothing yet.
func (a Access) Transport(brokers []string, clientID string) *Transport {
	t := &Transport{ClientID: clientID, access: a, throttle: NewThrottle(a.logger()),
		members: make(map[int32]*broker), coordinators: make(map[coordinated]int32)}
	t.catalog.layout = protocol.Cluster{Brokers: make(map[int32]protocol.Broker), Topics: make(map[string]protocol.Topic)}
	t.catalog.topics = make(map[string]*knownTopic)
	for _, address := range brokers {
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(address, "9092")
		}
		t.seeds = append(t.seeds, &broker{transport: t, address: address})
	}
	return t
}

// Throttle tells which brokers throttle this client.
func (t *Transport) Throttle() *Throttle { return t.throttle }

// CloseIdleConnections closes the connections that no request uses; the others are closed when
// their request is answered.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	all := t.brokersLocked()
	t.mu.Unlock()
	for _, b := range all {
		b.closeIdle(false)
	}
}

func (t *Transport) brokersLocked() []*broker {
	all := slices.Clone(t.seeds)
	for _, b := range t.members {
		all = append(all, b)
	}
	return all
}

// RoundTrip implements kafka.RoundTripper for a cluster's own address, whatever addr is.
func (t *Transport) RoundTrip(ctx context.Context, _ net.Addr, request kafka.Request) (kafka.Response, error) {
	return t.Do(ctx, request, answerTimeout)
}

// patient is a kafka.RoundTripper with its own time limit for answers.
type patient struct {
	*Transport
	patience time.Duration
}

// RoundTrip implements kafka.RoundTripper.
func (p patient) RoundTrip(ctx context.Context, _ net.Addr, request kafka.Request) (kafka.Response, error) {
	return p.Do(ctx, request, p.patience)
}

// Client returns kafka-go's client for requests that are to be answered within a time. It needs
// no Timeout, which would also run while a broker throttles.
func (t *Transport) Client(patience time.Duration) *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(t.seeds[0].address), Transport: patient{t, patience}}
}

// Do sends a request to the broker that is to answer it and returns the answer. Patience is how
// long each broker may take for that. It does not run while the broker throttles this client;
// only ctx ends that wait.
func (t *Transport) Do(ctx context.Context, request protocol.Message, patience time.Duration) (protocol.Message, error) {
	if m, ok := request.(protocol.Splitter); ok {
		return t.split(ctx, request, m, patience)
	}
	switch m := request.(type) {
	case protocol.BrokerMessage:
		b, err := t.route(ctx, request, m)
		if err != nil {
			return nil, err
		}
		return b.exchange(ctx, request, patience)
	case protocol.GroupMessage:
		return t.coordinated(ctx, request, coordinated{m.Group(), groupKind}, patience)
	case protocol.TransactionalMessage:
		return t.coordinated(ctx, request, coordinated{m.Transaction(), transactionKind}, patience)
	}
	return t.any(ctx, request, patience)
}

// split sends the parts of a request one after the other.
func (t *Transport) split(ctx context.Context, request protocol.Message, m protocol.Splitter, patience time.Duration) (protocol.Message, error) {
	t.mu.Lock()
	parts, merger, err := m.Split(t.catalog.layout)
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	results := make([]any, len(parts))
	for i, part := range parts {
		b, err := t.route(ctx, part, part.(protocol.BrokerMessage))
		if err == nil {
			results[i], err = b.exchange(ctx, part, patience)
		}
		if err != nil {
			results[i] = err
		}
	}
	return merger.Merge(parts, results)
}

// any sends a request to one broker after the other until one answers.
func (t *Transport) any(ctx context.Context, request protocol.Message, patience time.Duration) (protocol.Message, error) {
	t.mu.Lock()
	all := t.brokersLocked()
	t.mu.Unlock()
	slices.SortStableFunc(all, func(a, b *broker) int {
		return cmp.Or(a.failedAt().Compare(b.failedAt()), cmp.Compare(t.throttle.Remaining(a.address), t.throttle.Remaining(b.address)))
	})
	if len(all) == 0 {
		return nil, errors.New("there is no address of a broker")
	}
	var failures []error
	tried := make(map[string]bool)
	for _, b := range all {
		if tried[b.address] {
			continue
		}
		tried[b.address] = true
		answer, err := b.exchange(ctx, request, patience)
		if err != nil && ctx.Err() == nil && !isTimeout(err) { // maybe the connection was an old one
			answer, err = b.exchange(ctx, request, patience)
		}
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// route returns the broker that a request names.
func (t *Transport) route(ctx context.Context, request protocol.Message, m protocol.BrokerMessage) (*broker, error) {
	const attempts = 2 // one for the brokers, one for the topic
	for attempt := 0; ; attempt++ {
		t.mu.Lock()
		id, unknown, err := int32(-1), "", error(nil)
		if len(t.members) > 0 {
			var chosen protocol.Broker
			chosen, err = m.Broker(t.catalog.layout)
			id = chosen.ID
		}
		b := t.members[id]
		var topic *protocol.TopicError
		var partition *protocol.TopicPartitionError
		switch r := request.(type) {
		case *listoffsetsapi.Request: // says nothing of what it does not find
			unknown = r.Topics[0].Topic
		default:
			if errors.As(err, &topic) {
				unknown = topic.Topic
			} else if errors.As(err, &partition) {
				unknown = partition.Topic
			}
		}
		t.mu.Unlock()
		if err == nil && b != nil {
			return b, nil
		}
		if attempt == attempts {
			return nil, cmp.Or(unwrapped(err), error(kafka.BrokerNotAvailable))
		}
		if unknown == "" {
			err = t.ask(ctx, nil, false) // about the brokers
		} else {
			_, _, err = t.topics(ctx, []string{unknown}, false, 0)
		}
		if err != nil {
			return nil, err
		}
	}
}

// unwrapped is the error of a request without a route as the broker would have put it.
func unwrapped(err error) error {
	switch {
	case errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return fmt.Errorf("%w: %w", err, kafka.UnknownTopicOrPartition)
	case errors.Is(err, protocol.ErrNoLeader):
		return fmt.Errorf("%w: %w", err, kafka.LeaderNotAvailable)
	}
	return err
}

// coordinated sends a request to the coordinator of a group or a transactional id.
func (t *Transport) coordinated(ctx context.Context, request protocol.Message, of coordinated, patience time.Duration) (protocol.Message, error) {
	t.mu.Lock()
	id, known := t.coordinators[of]
	b := t.members[id]
	t.mu.Unlock()
	if !known || b == nil {
		var err error
		if b, err = t.coordinator(ctx, of, min(patience, answerTimeout)); err != nil { // a member may wait long, a lookup not
			return nil, err
		}
	}
	answer, err := b.exchange(ctx, request, patience)
	if err != nil {
		t.forget(of)
	}
	return answer, err
}

// coordinator asks for a coordinator.
func (t *Transport) coordinator(ctx context.Context, of coordinated, patience time.Duration) (*broker, error) {
	answer, err := t.any(ctx, &findcoordinatorapi.Request{Key: of.name, KeyType: of.kind}, patience)
	if err != nil {
		return nil, fmt.Errorf("find the coordinator of %s: %w", of.name, err)
	}
	response := answer.(*findcoordinatorapi.Response)
	if err := described(response.ErrorCode, response.ErrorMessage); err != nil {
		return nil, fmt.Errorf("find the coordinator of %s: %w", of.name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	const many = 100_000
	if len(t.coordinators) >= many {
		clear(t.coordinators)
	}
	t.coordinators[of] = response.NodeID
	return t.memberLocked(protocol.Broker{ID: response.NodeID, Host: response.Host, Port: response.Port}), nil
}

// forget has a coordinator asked for again.
func (t *Transport) forget(of coordinated) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.coordinators, of)
}

// ForgetCoordinators has the coordinators of groups and of transactional ids asked for again. It
// is for their own answers: that they are not, or not yet, the coordinator.
func (t *Transport) ForgetCoordinators(names ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		delete(t.coordinators, coordinated{name, groupKind})
		delete(t.coordinators, coordinated{name, transactionKind})
	}
}

// memberLocked returns the broker of that id at that address.
func (t *Transport) memberLocked(of protocol.Broker) *broker {
	address := net.JoinHostPort(of.Host, strconv.Itoa(int(of.Port)))
	b := t.members[of.ID]
	if b != nil && b.address == address {
		return b
	}
	if b != nil {
		b.closeIdle(true)
	}
	b = &broker{transport: t, address: address}
	t.members[of.ID] = b
	t.catalog.layout.Brokers[of.ID] = of
	return b
}

// Ask sends a request of kmsg, in the newest version that both sides know, to any broker.
func (t *Transport) Ask(ctx context.Context, request kmsg.Request, patience time.Duration) (kmsg.Response, error) {
	answer, err := t.any(ctx, &encoded{Request: request}, patience)
	if err != nil {
		return nil, err
	}
	return answer.(*encoded).Response, nil
}

// AskLeader sends a request of kmsg to the leader of a partition. When the leader may be another
// one by now, the next call asks for it.
func (t *Transport) AskLeader(ctx context.Context, topic string, partition int, request kmsg.Request, patience time.Duration) (kmsg.Response, error) {
	id, err := t.leader(ctx, topic, partition)
	var answer protocol.Message
	if err == nil {
		answer, err = t.Do(ctx, &toBroker{encoded{Request: request}, id}, patience)
	}
	if err != nil {
		t.Stale(topic)
		return nil, err
	}
	return answer.(*encoded).Response, nil
}

// toBroker is a request that one broker answers.
type toBroker struct {
	encoded
	id int32
}

// Broker implements protocol.BrokerMessage.
func (m *toBroker) Broker(layout protocol.Cluster) (protocol.Broker, error) {
	if b, ok := layout.Brokers[m.id]; ok {
		return b, nil
	}
	return protocol.Broker{}, kafka.BrokerNotAvailable
}

// Controller sends a request of kmsg to the controller.
func (t *Transport) Controller(ctx context.Context, request kmsg.Request, patience time.Duration) (kmsg.Response, error) {
	answer, err := t.Do(ctx, &toController{encoded{Request: request}}, patience)
	if err != nil {
		return nil, err
	}
	return answer.(*encoded).Response, nil
}

// toController is a request that the controller answers.
type toController struct{ encoded }

// Broker implements protocol.BrokerMessage.
func (*toController) Broker(layout protocol.Cluster) (protocol.Broker, error) {
	return layout.Brokers[layout.Controller], nil
}

// splitAddress takes host and port apart.
func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(strings.TrimSpace(text))
	return host, port, err
}

// Muted returns how much longer a broker mutes this client.
func (t *Transport) Muted(id int32) time.Duration {
	t.mu.Lock()
	b := t.members[id]
	t.mu.Unlock()
	if b == nil {
		return 0
	}
	return t.throttle.Remaining(b.address)
}
