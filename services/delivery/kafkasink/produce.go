package kafkasink

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	apiversionsapi "github.com/segmentio/kafka-go/protocol/apiversions"
	produceapi "github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"github.com/spillwayio/spillway/services/internal/backoff"
)

const (
	// maxBufferBytes is what a slot keeps for its next turn.
	maxBufferBytes = 4 << 20
	// brokerShare is the part of the time for a request that the broker may wait for its replicas.
	brokerShare = 0.8
)

// part is one batch in a request: bytes [start, end) of the slot's buffer.
type part struct {
	group      int
	start, end int
}

// Probe implements delivery.Prober.
func (s *Sink) Probe(ctx context.Context) error {
	answer, err := s.transport.Do(ctx, &apiversionsapi.Request{}, s.timing.metadata)
	if err != nil {
		return fmt.Errorf("reach Kafka at %s: %w", s.brokers, err)
	}
	response := answer.(*apiversionsapi.Response)
	if response.ErrorCode != 0 {
		return fmt.Errorf("reach Kafka at %s: %w", s.brokers, kafka.Error(response.ErrorCode))
	}
	for _, api := range response.ApiKeys {
		if protocol.ApiKey(api.ApiKey) == protocol.Produce && api.MaxVersion < 3 {
			return fmt.Errorf("the broker at %s is older than Kafka 0.11", s.brokers)
		}
	}
	return nil
}

// deliver produces all records of a job, for as long as it takes. It returns an error only when
// ctx ends.
func (s *Sink) deliver(ctx context.Context, j *job) error {
	wait := backoff.Backoff{Initial: s.timing.retryMin, Max: s.timing.retryMax}
	turn := s.turn
	if s.cfg.ExactlyOnce {
		turn = s.transact
	}
	failing := false
	end := func() {
		if failing {
			failing = false
			j.failing.Store(false)
			s.trouble.end(ctx.Err() == nil)
			wait.Reset()
		}
	}
	defer end()
	for {
		finished, err := turn(ctx, j)
		var muted *mutedError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case finished:
			return nil
		case err == nil:
			end()
			continue // the next batches
		case errors.As(err, &muted): // without a slot, so that others go on
			if err := sleep(ctx, muted.left); err != nil {
				return err
			}
			continue
		case failing:
			s.trouble.again(err)
		default:
			failing = true
			s.trouble.begin(err)
		}
		j.failing.Store(true)
		if err := wait.Wait(ctx); err != nil {
			return err
		}
	}
}

// sleep returns after d, or with ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slot waits for a slot, which goes back into slots.
func (s *Sink) slot(ctx context.Context) (*slot, error) {
	select {
	case sl := <-s.slots:
		return sl, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// turn is one attempt, with a slot. An error is a reason to wait before the next.
func (s *Sink) turn(ctx context.Context, j *job) (finished bool, err error) {
	sl, err := s.slot(ctx)
	if err != nil {
		return false, err
	}
	defer func() { s.slots <- sl }()
	if !j.loaded {
		j.load(s.topic, s.perRecord, s.cfg.Provenance, 0, nil)
	}
	j.dropRevoked()
	if j.done() {
		return true, nil
	}
	err = s.attempt(ctx, sl, j)
	return j.done(), err
}

// attempt sends one batch to each target partition that has something left. It goes on where some
// fail, and returns the first failure.
func (s *Sink) attempt(ctx context.Context, sl *slot, j *job) error {
	for i := range j.groups {
		j.groups[i].leader, j.groups[i].sent = -1, 0
	}
	failure := s.locate(ctx, j)
	muted := s.muted(j)
	if failure == nil && muted > 0 && j.producer != nil && len(j.producer.enlisted) == 0 {
		return &mutedError{muted} // a transaction does not begin with a wait
	}
	if j.producer != nil && failure == nil {
		failure = s.enlist(ctx, j)
	}
	if j.producer != nil && failure != nil { // all of it or nothing
		return failure
	}
	if err := s.encode(sl, j); err != nil {
		return err
	}
	if len(sl.parts) == 0 && failure == nil && muted > 0 {
		return &mutedError{muted}
	}
	if len(sl.parts) == 0 && failure == nil && !j.done() {
		return fmt.Errorf("nothing can be produced to %s: %w", strings.Join(j.unfinished(nil), ", "), error(kafka.LeaderNotAvailable))
	}
	return cmp.Or(failure, s.send(ctx, sl, j))
}

// muted returns for how long the first of the leaders that something is left for mutes this
// client, 0 when one of them does not; within a transaction all of them count. Without a
// transaction nothing is sent to the others meanwhile.
func (s *Sink) muted(j *job) time.Duration {
	var least, most time.Duration
	open := false
	for i := range j.groups {
		g := &j.groups[i]
		if g.leader < 0 || g.done() {
			continue
		}
		left := s.transport.Muted(g.leader)
		switch {
		case left == 0:
			open = true
		case least == 0 || left < least:
			least = left
		}
		most = max(most, left)
		if left > 0 && j.producer == nil {
			g.leader = -1
		}
	}
	switch {
	case j.producer != nil:
		return most
	case open:
		return 0
	}
	return least
}

// encode puts a batch for each group that has a leader into the slot's buffer, in the order of
// leaders and topics: for each leader as many as one request may have.
func (s *Sink) encode(sl *slot, j *job) error {
	sl.buffer, sl.parts = sl.buffer[:0], sl.parts[:0]
	for i := range j.groups {
		if g := &j.groups[i]; g.leader >= 0 && !g.done() {
			sl.parts = append(sl.parts, part{group: i})
		}
	}
	slices.SortStableFunc(sl.parts, func(a, b part) int {
		ga, gb := &j.groups[a.group], &j.groups[b.group]
		return cmp.Or(cmp.Compare(ga.leader, gb.leader), cmp.Compare(ga.target, gb.target))
	})
	allowed, leader, left := s.allowance.now(), int32(-1), 0
	kept := sl.parts[:0]
	for _, p := range sl.parts {
		g := &j.groups[p.group]
		if g.leader != leader {
			leader, left = g.leader, allowed
		} else if left <= 0 {
			continue // with the next request
		}
		limit := g.limit
		if limit == 0 {
			limit = math.MaxInt
		}
		p.start = len(sl.buffer)
		var err error
		bytes := min(s.batchBytes(j.topics[g.target].name), left)
		if sl.buffer, g.sent, g.sentBytes, err = sl.encoder.append(sl.buffer, j.records, g.records[g.produced:], limit, bytes, j.stamp(g)); err != nil {
			return err
		}
		p.end = len(sl.buffer)
		left -= g.sentBytes
		kept = append(kept, p)
	}
	sl.parts = kept
	return nil
}

// send sends one request to each leader, all at the same time, and takes note of the answers.
func (s *Sink) send(ctx context.Context, sl *slot, j *job) error {
	if len(sl.parts) == 0 {
		return nil
	}
	type result struct {
		parts    []part
		response *produceapi.Response
		err      error
	}
	var results []result
	for first, i := 0, 1; i <= len(sl.parts); i++ {
		if i == len(sl.parts) || j.groups[sl.parts[i].group].leader != j.groups[sl.parts[first].group].leader {
			results = append(results, result{parts: sl.parts[first:i]})
			first = i
		}
	}
	var wg sync.WaitGroup
	for i := range results {
		r := &results[i]
		exchange := func() { r.response, r.err = s.exchange(ctx, j, sl.buffer, r.parts) }
		if i == len(results)-1 {
			exchange()
		} else {
			wg.Go(exchange)
		}
	}
	wg.Wait()

	var failure error
	for i := range results {
		r := &results[i]
		if r.err != nil {
			for _, p := range r.parts { // another broker may lead it by now
				s.transport.Stale(j.topics[j.groups[p.group].target].name)
			}
			failure = cmp.Or(failure, fmt.Errorf("produce to broker %d: %w", j.groups[r.parts[0].group].leader, r.err))
			continue
		}
		failure = cmp.Or(failure, s.settle(j, r.parts, r.response))
	}
	if cap(sl.buffer) > maxBufferBytes {
		sl.buffer = nil
	}
	if cap(sl.encoder.plain) > maxBufferBytes {
		sl.encoder.plain = nil
	}
	return failure
}

// exchange sends one request. The parts have the same leader.
func (s *Sink) exchange(ctx context.Context, j *job, buffer []byte, parts []part) (*produceapi.Response, error) {
	request := &rawproduce.Request{TransactionalID: j.transactionalID(), Acks: int16(kafka.RequireAll), Timeout: int32(s.timing.request.Seconds() * brokerShare * 1000)}
	last := -1
	for _, p := range parts {
		g := &j.groups[p.group]
		if g.target != last {
			request.Topics = append(request.Topics, rawproduce.RequestTopic{Topic: j.topics[g.target].name})
			last = g.target
		}
		t := &request.Topics[len(request.Topics)-1]
		t.Partitions = append(t.Partitions, rawproduce.RequestPartition{
			Partition: g.partition, RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(buffer[p.start:p.end])}})
	}
	answer, err := s.transport.Do(ctx, request, s.timing.request)
	if err != nil {
		var wrapped *rawproduce.Error // says that it is about a fetch
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	response := answer.(*produceapi.Response)
	size := 0
	for _, p := range parts {
		size += j.groups[p.group].sentBytes
	}
	s.allowance.heard(size, time.Duration(response.ThrottleTimeMs)*time.Millisecond)
	return response, nil
}

// settle takes note of the answer for each part and returns the first failure that may pass.
func (s *Sink) settle(j *job, parts []part, response *produceapi.Response) error {
	var failure error
	for i := range response.Topics {
		topic := &response.Topics[i]
		n, known := j.byName[topic.Topic]
		if !known {
			continue
		}
		for k := range topic.Partitions {
			p := &topic.Partitions[k]
			i, ours := j.index[place{n, p.Partition}]
			if !ours {
				continue
			}
			g := &j.groups[i]
			failure = cmp.Or(failure, s.settleGroup(j, g, p))
			g.sent = 0
		}
	}
	for _, p := range parts {
		if g := &j.groups[p.group]; g.sent > 0 {
			g.sent = 0
			failure = cmp.Or(failure, fmt.Errorf("produce to %s: the broker's answer does not mention it", j.partName(g)))
		}
	}
	return failure
}

func (s *Sink) settleGroup(j *job, g *group, p *produceapi.ResponsePartition) error {
	code := kafka.Error(p.ErrorCode)
	if code == 0 {
		g.produced += g.sent
		j.advance(g)
		if g.limit *= 2; g.limit >= len(g.records) {
			g.limit = 0
		}
		return nil
	}
	failure := fmt.Errorf("produce to %s: %w", j.partName(g), describe(code, p))
	switch code {
	case kafka.TopicAuthorizationFailed:
		return s.denied(j, g.target, failure)
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		if g.sent > 1 {
			s.lowerBatchBytes(j.topics[g.target].name, g.sentBytes/2)
			return nil
		}
	case kafka.InvalidRecord, kafka.InvalidTimestamp:
		if g.sent > 1 {
			g.limit = g.sent / 2
			return nil
		}
	default:
		if isStale(code) {
			s.transport.Stale(j.topics[g.target].name)
		}
		return failure
	}
	if g.sent == 0 {
		return nil
	}
	i := int(g.records[g.produced])
	refusal := fmt.Sprintf("%s refuses the record of %d bytes (key, value, headers): %v", j.partName(g), j.records[i].size(), describe(code, p))
	if s.cfg.OnRejected == "wait" {
		return fmt.Errorf("%s (on_rejected: wait)", refusal)
	}
	j.reject(i, refusal)
	g.produced++
	return nil
}

// describe is an error with the broker's own words where it has any.
func describe(code kafka.Error, p *produceapi.ResponsePartition) error {
	message := p.ErrorMessage
	for i := 0; message == "" && i < len(p.RecordErrors); i++ {
		message = p.RecordErrors[i].BatchIndexErrorMessage
	}
	if message == "" {
		return code
	}
	return fmt.Errorf("%w: %s", code, message)
}

// isStale says whether fresh metadata may help. A leader without its replicas may have been cut
// off from them, and from its controller, so that it does not know that there is another.
func isStale(code kafka.Error) bool {
	switch code {
	case kafka.RequestTimedOut, kafka.NotEnoughReplicas, kafka.NotEnoughReplicasAfterAppend:
		return true
	case kafka.NotLeaderForPartition, kafka.UnknownTopicOrPartition, kafka.LeaderNotAvailable, kafka.ReplicaNotAvailable,
		kafka.BrokerNotAvailable, kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch, kafka.KafkaStorageError, kafka.NetworkException:
		return true
	}
	return false
}

// batchBytes is the bound of a batch for a topic.
func (s *Sink) batchBytes(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit, known := s.limits[topic]; known {
		return limit
	}
	return maxBatchBytes
}

// lowerBatchBytes remembers that a topic takes less, so that not every batch is refused first.
func (s *Sink) lowerBatchBytes(topic string, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.limits[topic]; !ok || limit < known {
		s.limits[topic] = limit
	}
}
