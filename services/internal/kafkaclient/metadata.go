package kafkaclient

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// metadataTimeout bounds each broker's answer to a metadata request.
	metadataTimeout = 15 * time.Second
	// oldLeaders is for how long an answer that tells of older leaders than are known is not
	// believed: it is of a broker that is cut off from the others.
	oldLeaders = 5 * time.Minute
	// metadataLife is how long an answer about a topic is used. Leaders that moved are noticed by
	// their answers, so this is about partitions that are added.
	metadataLife = 30 * time.Second
)

// catalog is what was last heard of the cluster. Transport.mu guards it.
type catalog struct {
	cluster string
	layout  protocol.Cluster // as kafka-go's requests want it
	topics  map[string]*knownTopic
	flight  *flight         // the request under way
	wanted  map[string]bool // topics that the next request asks for, and whether it may create them
	turn    int             // of Compare
}

// flight is a metadata request that several callers wait for.
type flight struct {
	done      chan struct{}
	err       error
	abandoned bool // by the caller that sent it
}

// knownTopic is what was last heard of a topic.
type knownTopic struct {
	TopicMetadata
	asked time.Time // when the request was sent
	stale bool
	// heard is when the request was sent that told of its newest leaders.
	heard time.Time
}

// TopicMetadata describes a topic. It is shared: nobody changes it.
type TopicMetadata struct {
	Name string
	// ID differs between a topic and one that was created later under its name. It is zero when
	// the broker does not tell (before Kafka 2.8).
	ID       [16]byte
	Internal bool
	Err      error // a kafka.Error
	// Leaders are by partition: the leader's id, or why there is none. A partition that is left
	// out has the error UnknownTopicOrPartition.
	Leaders []Leader
}

// Leader is who leads a partition.
type Leader struct {
	ID  int32 // negative with an error
	Err error // a kafka.Error
	// Epoch grows with each new leader; negative when the broker does not tell (before Kafka 2.1).
	Epoch int32
}

// Topics describes the topics of these names, and returns the cluster's id, too. What was heard
// within half a minute is not asked for again, unless it was an error or is Stale. Create has the
// brokers create a missing topic if they are configured to. At most one request is under way;
// those who come meanwhile share the next.
func (t *Transport) Topics(ctx context.Context, names []string, create bool) (topics map[string]TopicMetadata, cluster string, err error) {
	return t.topics(ctx, names, create, metadataLife)
}

// topics is Topics for answers that are not older than a time when the call begins.
func (t *Transport) topics(ctx context.Context, names []string, create bool, life time.Duration) (topics map[string]TopicMetadata, cluster string, err error) {
	began := time.Now()
	for {
		t.mu.Lock()
		missing := t.missingLocked(names, began, life)
		if len(missing) == 0 && len(t.members) > 0 {
			topics = make(map[string]TopicMetadata, len(names))
			for _, name := range names {
				topics[name] = t.catalog.topics[name].TopicMetadata
			}
			cluster = t.catalog.cluster
			t.mu.Unlock()
			return topics, cluster, nil
		}
		if t.catalog.wanted == nil {
			t.catalog.wanted = make(map[string]bool)
		}
		for _, name := range missing {
			t.catalog.wanted[name] = t.catalog.wanted[name] || create
		}
		f := t.catalog.flight
		mine := f == nil
		var wanted map[string]bool
		if mine {
			f = &flight{done: make(chan struct{})}
			t.catalog.flight = f
			wanted, t.catalog.wanted = t.catalog.wanted, nil
		}
		t.mu.Unlock()
		if mine {
			err := t.fly(ctx, f, wanted)
			if err != nil {
				return nil, "", err
			}
			continue
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
		if f.err != nil && !f.abandoned {
			return nil, "", f.err
		}
	}
}

// missingLocked returns the names of which nothing recent is known.
func (t *Transport) missingLocked(names []string, began time.Time, life time.Duration) []string {
	var missing []string
	for _, name := range names {
		k := t.catalog.topics[name]
		switch {
		case k == nil:
		case !k.asked.Before(began):
			continue // an answer to this call
		case !k.stale && k.settled() && began.Sub(k.asked) < life:
			continue
		}
		missing = append(missing, name)
	}
	return missing
}

// settled says whether there is nothing wrong with a topic.
func (k *knownTopic) settled() bool {
	return k.Err == nil && len(k.Leaders) > 0 && !slices.ContainsFunc(k.Leaders, func(l Leader) bool { return l.Err != nil })
}

// fly asks for topics, of which those with true may be created.
func (t *Transport) fly(ctx context.Context, f *flight, wanted map[string]bool) (err error) {
	defer func() {
		t.mu.Lock()
		t.catalog.flight = nil
		t.mu.Unlock()
		f.err, f.abandoned = err, ctx.Err() != nil
		close(f.done)
	}()
	var found, create, stale []string
	t.mu.Lock()
	for name := range wanted {
		if k := t.catalog.topics[name]; k != nil && k.stale {
			stale = append(stale, name)
		}
	}
	t.mu.Unlock()
	defer func() {
		if err == nil { // what a leader answered may be so because it is none any more, and so may this
			_ = t.Compare(ctx, stale)
		}
	}()
	for name, may := range wanted {
		if may {
			create = append(create, name)
		} else {
			found = append(found, name)
		}
	}
	if len(create) == 0 || len(found) > 0 {
		if err := t.ask(ctx, found, false); err != nil {
			return err
		}
	}
	if len(create) > 0 {
		return t.ask(ctx, create, true)
	}
	return nil
}

// metadataRequest asks about the topics of these names, or about all when there is none.
func metadataRequest(names []string, create bool) *kmsg.MetadataRequest {
	request := kmsg.NewPtrMetadataRequest()
	request.AllowAutoTopicCreation = create
	for _, name := range names {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		request.Topics = append(request.Topics, topic)
	}
	return request
}

// ask sends one metadata request, about the brokers only when there are no names.
func (t *Transport) ask(ctx context.Context, names []string, create bool) error {
	request := metadataRequest(names, create)
	if len(names) == 0 {
		request.Topics = []kmsg.MetadataRequestTopic{}
	}
	asked := time.Now()
	if _, err := t.metadata(ctx, request); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names { // a broker that says nothing of a topic does not know it
		if k := t.catalog.topics[name]; k == nil || k.asked.Before(asked) {
			t.catalog.topics[name] = &knownTopic{TopicMetadata: TopicMetadata{Name: name, Err: kafka.UnknownTopicOrPartition}, asked: asked}
			delete(t.catalog.layout.Topics, name)
		}
	}
	return nil
}

// metadata sends a metadata request and keeps what it hears.
func (t *Transport) metadata(ctx context.Context, request *kmsg.MetadataRequest) (*kmsg.MetadataResponse, error) {
	asked := time.Now()
	answer, err := t.Ask(ctx, request, metadataTimeout)
	if err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	response := answer.(*kmsg.MetadataResponse)
	if response.ErrorCode != 0 {
		return nil, fmt.Errorf("read metadata: %w", kafka.Error(response.ErrorCode))
	}
	if len(response.Brokers) == 0 {
		return nil, fmt.Errorf("read metadata: the answer names no brokers: %w", kafka.BrokerNotAvailable)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.learnLocked(asked, request.Topics == nil, response)
	return response, nil
}

// learnLocked takes in an answer.
func (t *Transport) learnLocked(asked time.Time, all bool, response *kmsg.MetadataResponse) {
	c := &t.catalog
	if response.ClusterID != nil {
		c.cluster = *response.ClusterID
	}
	c.layout.ClusterID, c.layout.Controller = c.cluster, response.ControllerID
	there := make(map[int32]bool, len(response.Brokers))
	for _, b := range response.Brokers {
		there[b.NodeID] = true
		t.memberLocked(protocol.Broker{ID: b.NodeID, Host: b.Host, Port: b.Port})
	}
	for id, b := range t.members {
		if !there[id] {
			b.closeIdle(true)
			delete(t.members, id)
			delete(c.layout.Brokers, id)
		}
	}
	const many = 100_000 // names may come from records
	before := c.topics
	if all || len(c.topics) > many {
		c.topics = make(map[string]*knownTopic)
		clear(c.layout.Topics)
	}
	for i := range response.Topics {
		topic := &response.Topics[i]
		if topic.Topic == nil {
			continue
		}
		k := &knownTopic{TopicMetadata: describeTopic(topic), asked: asked, heard: asked}
		k.keepNewer(before[k.Name])
		c.topics[k.Name] = k
		c.lay(k)
	}
}

// lay describes a topic to kafka-go's requests.
func (c *catalog) lay(k *knownTopic) {
	delete(c.layout.Topics, k.Name)
	if k.Err != nil {
		return
	}
	layout := protocol.Topic{Name: k.Name, Partitions: make(map[int32]protocol.Partition, len(k.Leaders))}
	for p, l := range k.Leaders {
		layout.Partitions[int32(p)] = protocol.Partition{ID: int32(p), Leader: l.ID}
	}
	c.layout.Topics[k.Name] = layout
}

// same says whether both are known to be about one topic, and not one that was created later.
func (k *knownTopic) same(o *knownTopic) bool { return k.ID != [16]byte{} && k.ID == o.ID }

// keepNewer keeps of what was known before the leaders that are newer.
func (k *knownTopic) keepNewer(before *knownTopic) {
	if before == nil || !k.same(before) || k.asked.Sub(before.heard) >= oldLeaders {
		return
	}
	for p := range min(len(k.Leaders), len(before.Leaders)) {
		if was := before.Leaders[p]; was.Epoch > k.Leaders[p].Epoch && k.Leaders[p].Epoch >= 0 {
			k.Leaders[p], k.heard = was, before.heard
		}
	}
}

// Compare asks another broker each time for the leaders of topics, and takes over those that are
// newer than what is known. A broker that is cut off from its controller does not know that it
// leads a partition no more, and answers all questions as before.
func (t *Transport) Compare(ctx context.Context, names []string) error {
	t.mu.Lock()
	ids := slices.Sorted(maps.Keys(t.members))
	ids = slices.DeleteFunc(ids, func(id int32) bool { return time.Since(t.members[id].failedAt()) < compareAgain })
	if len(t.members) < 2 || len(ids) == 0 || len(names) == 0 {
		t.mu.Unlock()
		return nil
	}
	t.catalog.turn++
	b := t.members[ids[t.catalog.turn%len(ids)]]
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	return t.compareWith(ctx, b, names)
}

// compareTimeout bounds the answers that leaders are compared with, and compareAgain is when a
// broker that failed is asked again.
const compareTimeout, compareAgain = 5 * time.Second, 30 * time.Second

// CompareAll is Compare with all brokers that answer soon.
func (t *Transport) CompareAll(ctx context.Context, names []string) {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.members))
	t.mu.Unlock()
	if len(all) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, b := range all {
		wg.Go(func() { _ = t.compareWith(ctx, b, names) }) // the others count
	}
	wg.Wait()
}

func (t *Transport) compareWith(ctx context.Context, b *broker, names []string) error {
	asked := time.Now()
	answer, err := b.exchange(ctx, &encoded{Request: metadataRequest(names, false)}, metadataTimeout)
	if err != nil {
		return fmt.Errorf("read metadata: %w", err)
	}
	response := answer.(*encoded).Response.(*kmsg.MetadataResponse)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range response.Topics {
		if response.Topics[i].Topic == nil {
			continue
		}
		told := &knownTopic{TopicMetadata: describeTopic(&response.Topics[i])}
		k := t.catalog.topics[told.Name]
		if k == nil || !told.same(k) {
			continue
		}
		leaders, older := slices.Clone(k.Leaders), false
		for p := range min(len(leaders), len(told.Leaders)) {
			older = older || told.Leaders[p].Epoch < leaders[p].Epoch
			if told.Leaders[p].Epoch > leaders[p].Epoch && told.Leaders[p].Err == nil {
				leaders[p] = told.Leaders[p]
			}
		}
		next := *k
		if next.Leaders = leaders; !older {
			next.heard = asked
		}
		t.catalog.topics[k.Name] = &next
		if !k.stale {
			t.catalog.lay(&next)
		}
	}
	for _, n := range response.Brokers {
		if t.members[n.NodeID] == nil {
			t.memberLocked(protocol.Broker{ID: n.NodeID, Host: n.Host, Port: n.Port})
		}
	}
	return nil
}

func describeTopic(topic *kmsg.MetadataResponseTopic) TopicMetadata {
	d := TopicMetadata{Name: *topic.Topic, ID: topic.TopicID, Internal: topic.IsInternal, Err: described(topic.ErrorCode, "")}
	for i := range topic.Partitions {
		p := &topic.Partitions[i]
		// A partition's number is at most the number of those that are told, and of some that are
		// left out.
		const most = 1_000_000
		if p.Partition < 0 || p.Partition >= most {
			continue
		}
		for len(d.Leaders) <= int(p.Partition) {
			d.Leaders = append(d.Leaders, Leader{ID: -1, Err: kafka.UnknownTopicOrPartition, Epoch: -1})
		}
		// A partition with a leader can have an error, too: that one of its replicas is away.
		l := Leader{ID: p.Leader, Epoch: p.LeaderEpoch}
		if p.Leader < 0 {
			l.ID, l.Err = -1, kafka.LeaderNotAvailable
			if p.ErrorCode != 0 {
				l.Err = kafka.Error(p.ErrorCode)
			}
		}
		d.Leaders[p.Partition] = l
	}
	return d
}

// Stale has a topic asked for again on its next use.
func (t *Transport) Stale(topics ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range topics {
		if k := t.catalog.topics[name]; k != nil {
			k.stale = true
			delete(t.catalog.layout.Topics, name)
		}
	}
}
