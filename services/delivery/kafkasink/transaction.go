package kafkasink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/delivery"
)

// With exactly_once a job is a Kafka transaction, which also says what it delivers: the source ranges, in the
// metadata of an offset that is committed for a consumer group. Each source partition has a producer of its own,
// known to Kafka by a transactional id that every delivery of the subscription gives it, so that whoever is leased
// the partition fences those who had it before.
//
// Why every record arrives once, for a reader of committed records:
//
//   - Before a producer is used it is initialized: Kafka ends the transaction that another left open and refuses
//     everything further of that one. Only then the progress is read, and only then the buffer is asked, by an
//     empty ack, whether the leases are still held. If they are, nobody else had the partition since they were
//     leased, so that what was delivered of them is in the progress. Else they are dropped.
//   - A producer that was fenced, or whose transaction ended in doubt, is initialized anew.
//   - The progress is what was delivered and is not known to be acked. The next transaction of a source partition
//     begins after the ack of the last, so that it is one transaction's ranges, or a few more.
//   - What the buffer leases again of it is acked without being produced again; unless the lease's epoch is another:
//     then somebody asked for a replay.

const (
	// progressTopic has no records: Kafka takes offsets only of partitions that exist.
	progressTopic = "spillway-progress"
	// transactionTimeout is when Kafka ends a transaction whose producer is gone and has no successor.
	transactionTimeout = time.Minute
	// busyWait is the time before Kafka is asked again that is still ending the last transaction, for busyTimes.
	busyWait  = 20 * time.Millisecond
	busyTimes = 500
)

// producer delivers one source partition in transactions. It belongs to the job under way, or, between two, to the
// goroutine of Serve.
type producer struct {
	id        string // transactional id, and name of the group with the progress
	ready     bool   // initialized, and not fenced as far as is known
	session   kafka.ProducerSession
	enlisted  map[topicPartition]bool  // in the transaction under way
	sequences map[topicPartition]int32 // of the next record
	progress  progress
}

type topicPartition struct {
	topic     string
	partition int32
}

// producer returns that of a source partition.
func (s *Sink) producer(key sourceKey) *producer {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.producers[key]
	if p == nil {
		p = &producer{id: fmt.Sprintf("spillway/%s/%s/%s/%d", s.subscription, key.cluster, key.topic, key.partition)}
		if key.incarnation > 0 {
			p.id += fmt.Sprintf("/%d", key.incarnation)
		}
		s.producers[key] = p
	}
	return p
}

// transact is turn, with exactly_once: one attempt to deliver a job as a whole.
func (s *Sink) transact(ctx context.Context, j *job) (finished bool, err error) {
	sl, err := s.slot(ctx)
	if err != nil {
		return false, err
	}
	defer func() { s.slots <- sl }()
	p := s.producer(j.source)
	if !p.ready {
		if err := s.initialize(ctx, p, j); err != nil {
			return false, err
		}
	}
	first := slices.IndexFunc(j.leases, func(l *delivery.Lease) bool { return !l.Revoked() })
	if first < 0 {
		return true, nil
	}
	p.progress.begin(j.leases[first])
	j.unload()
	j.producer = p
	j.load(s.topic, s.perRecord, s.cfg.Provenance)
	j.dropRevoked()
	if j.done() {
		return true, nil
	}
	p.enlisted = make(map[topicPartition]bool)
	for err == nil && !j.done() {
		err = s.attempt(ctx, sl, j)
	}
	if err == nil && len(p.enlisted) > 0 { // else all of it is dead-lettered
		err = s.commit(ctx, p, j)
	}
	if err != nil {
		p.ready = false
		s.abort(ctx, p)
		return false, err
	}
	return true, nil
}

// initialize fences all other producers of the source partition, reads what they have delivered, and makes sure
// that it is this delivery's turn.
func (s *Sink) initialize(ctx context.Context, p *producer, j *job) error {
	if err := s.ensureProgressTopic(ctx); err != nil {
		return err
	}
	client := s.client()
	err := whileBusy(ctx, func() error {
		r, err := client.InitProducerID(ctx, &kafka.InitProducerIDRequest{TransactionalID: p.id,
			TransactionTimeoutMs: int(transactionTimeout.Milliseconds()), ProducerID: -1, ProducerEpoch: -1})
		if err == nil {
			err = r.Error
		}
		if err == nil {
			p.session = *r.Producer
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("initialize the producer %s: %w", p.id, err)
	}
	if p.progress, err = s.readProgress(ctx, client, p.id); err != nil {
		return err
	}
	p.sequences = make(map[topicPartition]int32)
	// Answered after all that the buffer had to tell by now: leases that are not held any more are revoked.
	if err := j.session.Ack(ctx, &delivery.Ack{}); err != nil {
		return fmt.Errorf("ask the buffer whether the leases are held: %w", err)
	}
	p.ready = true
	return nil
}

// stamp is what a group's next batch says of its producer.
func (j *job) stamp(g *group) stamp {
	if j.producer == nil {
		return noStamp
	}
	p := j.producer
	return stamp{int64(p.session.ProducerID), int16(p.session.ProducerEpoch), p.sequences[topicPartition{j.topics[g.target].name, g.partition}], transactional}
}

// advance counts what a group's partition has taken.
func (j *job) advance(g *group) {
	if j.producer != nil {
		tp := topicPartition{j.topics[g.target].name, g.partition}
		j.producer.sequences[tp] = (j.producer.sequences[tp] + int32(g.sent)) & math.MaxInt32
	}
}

func (j *job) transactionalID() string {
	if j.producer == nil {
		return ""
	}
	return j.producer.id
}

// enlist makes the job's target partitions part of the transaction.
func (s *Sink) enlist(ctx context.Context, j *job) error {
	p := j.producer
	request := &kafka.AddPartitionsToTxnRequest{TransactionalID: p.id, ProducerID: p.session.ProducerID, ProducerEpoch: p.session.ProducerEpoch,
		Topics: make(map[string][]kafka.AddPartitionToTxn)}
	var added []topicPartition
	for i := range j.groups {
		g := &j.groups[i]
		if tp := (topicPartition{j.topics[g.target].name, g.partition}); !g.done() && !p.enlisted[tp] {
			request.Topics[tp.topic] = append(request.Topics[tp.topic], kafka.AddPartitionToTxn{Partition: int(tp.partition)})
			added = append(added, tp)
		}
	}
	if len(added) == 0 {
		return nil
	}
	err := whileBusy(ctx, func() error {
		response, err := s.client().AddPartitionsToTxn(ctx, request)
		if err != nil {
			return err
		}
		for topic, partitions := range response.Topics {
			for _, one := range partitions {
				if one.Error != nil {
					return fmt.Errorf("%s/%d: %w", topic, one.Partition, one.Error)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("begin a transaction of %s: %w", p.id, err)
	}
	for _, tp := range added {
		p.enlisted[tp] = true
	}
	return nil
}

// commit ends the transaction, with the progress in it.
func (s *Sink) commit(ctx context.Context, p *producer, j *job) error {
	client, next := s.client(), p.progress
	next.add(j)
	text, whole := next.encode()
	if !whole {
		s.log.Warn("too many dead letters for one transaction: if this delivery is killed now, some count as delivered", "producer", p.id)
	}
	enlisted, err := client.AddOffsetsToTxn(ctx, &kafka.AddOffsetsToTxnRequest{TransactionalID: p.id, ProducerID: p.session.ProducerID, ProducerEpoch: p.session.ProducerEpoch, GroupID: p.id})
	if err == nil {
		err = enlisted.Error
	}
	if err != nil {
		return fmt.Errorf("add the progress to the transaction of %s: %w", p.id, err)
	}
	written, err := client.TxnOffsetCommit(ctx, &kafka.TxnOffsetCommitRequest{TransactionalID: p.id, GroupID: p.id, ProducerID: p.session.ProducerID,
		ProducerEpoch: p.session.ProducerEpoch, GenerationID: -1, Topics: map[string][]kafka.TxnOffsetCommit{progressTopic: {{Offset: next.end(), Metadata: text}}}})
	if err == nil {
		err = kafka.UnknownTopicOrPartition
		if of := written.Topics[progressTopic]; len(of) == 1 {
			err = of[0].Error
		}
	}
	if err != nil {
		return fmt.Errorf("write the progress of %s: %w", p.id, err)
	}
	ended, err := client.EndTxn(ctx, &kafka.EndTxnRequest{TransactionalID: p.id, ProducerID: p.session.ProducerID, ProducerEpoch: p.session.ProducerEpoch, Committed: true})
	if err == nil {
		err = ended.Error
	}
	if err != nil {
		return fmt.Errorf("commit the transaction of %s: %w", p.id, err)
	}
	p.progress = next
	return nil
}

// abort spares the readers of the target to wait for the transaction's timeout. Whether it succeeds does not
// matter: the producer is initialized anew.
func (s *Sink) abort(ctx context.Context, p *producer) {
	if len(p.enlisted) > 0 {
		_, _ = s.client().EndTxn(ctx, &kafka.EndTxnRequest{TransactionalID: p.id, ProducerID: p.session.ProducerID, ProducerEpoch: p.session.ProducerEpoch})
	}
}

// whileBusy does what Kafka refuses as long as it is ending the producer's last transaction.
func whileBusy(ctx context.Context, do func() error) error {
	for range busyTimes {
		err := do()
		if !errors.Is(err, kafka.ConcurrentTransactions) {
			return err
		}
		select {
		case <-time.After(busyWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return do()
}

func (s *Sink) client() *kafka.Client {
	return &kafka.Client{Addr: s.addr, Transport: s.transport, Timeout: s.timing.request}
}

// ensureProgressTopic creates the progress topic where it is missing.
func (s *Sink) ensureProgressTopic(ctx context.Context) error {
	s.mu.Lock()
	there := s.progressThere
	s.mu.Unlock()
	if there {
		return nil
	}
	metadata, err := s.client().Metadata(ctx, &kafka.MetadataRequest{Topics: []string{progressTopic}})
	if err == nil && len(metadata.Topics) == 1 {
		err = metadata.Topics[0].Error
	}
	if errors.Is(err, kafka.UnknownTopicOrPartition) {
		_, err = s.createTopic(ctx, kafka.TopicConfig{Topic: progressTopic, NumPartitions: 1, ReplicationFactor: -1})
	}
	if err != nil {
		return fmt.Errorf("the topic %s, which exactly_once needs (one partition, no records): %w", progressTopic, err)
	}
	s.mu.Lock()
	s.progressThere = true
	s.mu.Unlock()
	return nil
}

func (s *Sink) readProgress(ctx context.Context, client *kafka.Client, id string) (progress, error) {
	response, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: id, Topics: map[string][]int{progressTopic: {0}}})
	if err == nil {
		err = response.Error
	}
	var of []kafka.OffsetFetchPartition
	if err == nil {
		if of = response.Topics[progressTopic]; len(of) == 1 {
			err = of[0].Error
		}
	}
	if errors.Is(err, kafka.GroupIdNotFound) {
		return progress{}, nil
	}
	if err != nil {
		return progress{}, fmt.Errorf("read the progress of %s: %w", id, err)
	}
	if len(of) == 0 || of[0].CommittedOffset < 0 {
		return progress{}, nil
	}
	p, err := decodeProgress(of[0].Metadata)
	if err != nil {
		return p, fmt.Errorf("progress of %s: %w", id, err)
	}
	return p, nil
}

// maxProgressBytes is below what brokers take by default, offset.metadata.max.bytes: 4096.
const maxProgressBytes = 4000

// progress is what was delivered of a source partition in transactions, and is not known to be acked.
type progress struct {
	epoch  int64
	ranges []span // ascending, disjoint
}

// span is the offsets [first, next).
type span struct{ first, next int64 }

// begin forgets what cannot be leased again before a job that begins with l: what is before it, since leases come in
// order, and what another epoch has.
func (p *progress) begin(l *delivery.Lease) {
	if p.epoch != l.Epoch {
		*p = progress{epoch: l.Epoch}
	}
	p.remove(math.MinInt64, l.First)
}

// has says whether an offset was delivered.
func (p *progress) has(offset int64) bool {
	for _, r := range p.ranges {
		if r.first <= offset && offset < r.next {
			return true
		}
	}
	return false
}

// add adds what a job delivers: all of its leases but their dead letters.
func (p *progress) add(j *job) {
	ranges := append([]span(nil), p.ranges...)
	p.ranges = nil
	for i, l := range j.leases {
		if j.dropped[i] {
			continue
		}
		at := l.First
		slices.SortFunc(j.dead[i], func(a, b delivery.DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) })
		for _, d := range j.dead[i] {
			if d.Offset > at {
				ranges = append(ranges, span{at, d.Offset})
			}
			at = max(at, d.Offset+1)
		}
		if at < l.Next {
			ranges = append(ranges, span{at, l.Next})
		}
	}
	p.ranges = joined(ranges)
}

// remove forgets what was acked.
func (p *progress) remove(first, next int64) {
	var left []span
	for _, r := range p.ranges {
		if r.first < first {
			left = append(left, span{r.first, min(r.next, first)})
		}
		if r.next > next {
			left = append(left, span{max(r.first, next), r.next})
		}
	}
	p.ranges = left
}

// end is the offset after the highest that was delivered.
func (p *progress) end() int64 {
	if len(p.ranges) == 0 {
		return 0
	}
	return p.ranges[len(p.ranges)-1].next
}

// encode writes the progress as text: "1", the epoch, and each range as the distance from the end of the one before,
// a colon, and its length. Not whole means that it had too many ranges, and that gaps between them are filled.
func (p *progress) encode() (text string, whole bool) {
	for ranges := p.ranges; ; whole = false {
		var b strings.Builder
		fmt.Fprintf(&b, "1 %d", p.epoch)
		at := int64(0)
		for _, r := range ranges {
			fmt.Fprintf(&b, " %d:%d", r.first-at, r.next-r.first)
			at = r.next
		}
		if b.Len() <= maxProgressBytes {
			return b.String(), len(ranges) == len(p.ranges)
		}
		half := make([]span, 0, len(ranges)/2+1)
		for i := 0; i < len(ranges); i += 2 {
			half = append(half, span{ranges[i].first, ranges[min(i+1, len(ranges)-1)].next})
		}
		ranges = half
	}
}

func decodeProgress(text string) (progress, error) {
	var p progress
	fields := strings.Fields(text)
	bad := fmt.Errorf("%q was not written by this version of Spillway", text)
	if len(fields) < 2 || fields[0] != "1" {
		return p, bad
	}
	if _, err := fmt.Sscanf(fields[1], "%d", &p.epoch); err != nil {
		return p, bad
	}
	at := int64(0)
	for _, f := range fields[2:] {
		var gap, length int64
		if n, err := fmt.Sscanf(f, "%d:%d", &gap, &length); n != 2 || err != nil || gap < 0 || length <= 0 || gap > math.MaxInt64-at || length > math.MaxInt64-at-gap {
			return p, bad
		}
		p.ranges = append(p.ranges, span{at + gap, at + gap + length})
		at += gap + length
	}
	return p, nil
}

// joined sorts ranges and joins those that touch or overlap.
func joined(ranges []span) []span {
	slices.SortFunc(ranges, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var all []span
	for _, r := range ranges {
		if n := len(all); n > 0 && r.first <= all[n-1].next {
			all[n-1].next = max(all[n-1].next, r.next)
			continue
		}
		all = append(all, r)
	}
	return all
}
