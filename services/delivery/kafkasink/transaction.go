package kafkasink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/delivery"
)

// With exactly_once a job is a Kafka transaction, which also says what it delivers: the source
// ranges, in the metadata of an offset that is committed for a consumer group. Each source
// partition has a producer of its own, known to Kafka by a transactional id that every delivery of
// the subscription gives it, so that whoever is leased the partition fences those who had it
// before.
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
//     then somebody asked for a replay; or the ledger or a target topic is another: then it is about other records
//     (progress.go).

const (
	// progressTopic has no records: Kafka takes offsets only of partitions that exist.
	progressTopic = "spillway-progress"
	// transactionTimeout is when Kafka ends a transaction whose producer is gone and has no
	// successor.
	transactionTimeout = time.Minute
	// patientTimeout is the same while brokers mute this client for longer than patientFrom,
	// which counts as a part of the transaction. Brokers allow no more by default.
	patientTimeout = 15 * time.Minute
	patientFrom    = 10 * time.Second
	// busyWait is the time before Kafka is asked again that is still ending the last transaction,
	// for busyTimes.
	busyWait  = 20 * time.Millisecond
	busyTimes = 500
)

// producer delivers one source partition in transactions, for one session. It belongs to the job
// under way, or, between two, to the goroutine of Serve.
type producer struct {
	id        string // transactional id, and name of the group with the progress
	ready     bool   // initialized, and not fenced as far as is known
	timeout   time.Duration
	unchecked bool // whether the target topics are still those of the progress
	session   kafka.ProducerSession
	enlisted  map[topicPartition]bool  // in the transaction under way
	sequences map[topicPartition]int32 // of the next record
	progress  progress
}

type topicPartition struct {
	topic     string
	partition int32
}

// producerID returns the transactional id of a source partition's producers.
func (s *Sink) producerID(key sourceKey) string {
	id := fmt.Sprintf("spillway/%s/%s/%s/%d", s.subscription, key.cluster, key.topic, key.partition)
	if key.incarnation > 0 {
		id += fmt.Sprintf("/%d", key.incarnation)
	}
	return id
}

// producer returns that of a source partition. A new one is not ready: it fences those before it
// and reads their progress before it produces.
func (v *serving) producer(key sourceKey) *producer {
	p := v.producers[key]
	if p == nil {
		p = &producer{id: v.sink.producerID(key)}
		v.producers[key] = p
	}
	return p
}

// transact is turn, with exactly_once: one attempt to deliver a job as a whole.
func (s *Sink) transact(ctx context.Context, j *job) (finished bool, err error) {
	p := j.producer
	if p.timeout < s.transactionTimeout() {
		p.ready = false
	}
	if !p.ready {
		if err := s.initializeInTurn(ctx, p, j); err != nil {
			s.transport.ForgetCoordinators(p.id)
			return false, err
		}
	}
	sl, err := s.slot(ctx)
	if err != nil {
		return false, err
	}
	defer func() { s.slots <- sl }()
	first := slices.IndexFunc(j.leases, func(l *delivery.Lease) bool { return !l.Revoked() })
	if first < 0 {
		return true, nil
	}
	p.progress.begin(j.leases[first])
	marks, err := s.currentMarks(ctx, j, p)
	if err != nil {
		return false, err
	}
	// A broker that enforces a quota mutes this client in the middle of a transaction, so that
	// the transaction must be as small as the quota is; and its progress must be short.
	for limit := s.allowance.now(); ; limit /= 2 {
		j.unload()
		j.load(s.topic, s.perRecord, s.cfg.Provenance, max(limit, 1), marks)
		if len(j.records) <= 1 || len(j.topics) <= maxTargets && len(j.pieces()) <= maxPieces {
			break
		}
	}
	if p.progress.crowded() || j.crowded {
		crowded := j.crowded
		j.crowded = false
		if len(j.delivered) > 0 {
			return false, s.ackProgress(ctx, p, j)
		}
		if crowded { // by what is after this job: at most it is produced again
			p.progress.remove(j.leases[len(j.leases)-1].Next, math.MaxInt64)
		}
	}
	j.dropRevoked()
	if j.done() && !j.partial {
		return true, nil
	}
	p.enlisted = make(map[topicPartition]bool)
	for err == nil && !j.done() {
		err = s.attempt(ctx, sl, j)
	}
	if err == nil && len(p.enlisted) > 0 { // else all of it is dead-lettered
		err = s.commit(ctx, p, j)
	}
	var muted *mutedError
	if errors.As(err, &muted) { // before the transaction began
		return false, err
	}
	if err != nil {
		p.ready = false
		s.transport.ForgetCoordinators(p.id)
		s.abort(ctx, p)
		return false, err
	}
	if j.partial {
		j.keepDead()
	}
	return !j.partial, nil
}

// initializeInTurn initializes a producer, beside a fixed number of others. Kafka takes one at a
// time in a request, and its progress may only be read behind it: so with thousands of source
// partitions the time goes by in waiting, and needs none of the slots.
func (s *Sink) initializeInTurn(ctx context.Context, p *producer, j *job) error {
	select {
	case s.starts <- struct{}{}:
		defer func() { <-s.starts }()
		return s.initialize(ctx, p, j)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// initialize fences all other producers of the source partition, reads what they have delivered,
// and makes sure that it is this delivery's turn.
func (s *Sink) initialize(ctx context.Context, p *producer, j *job) error {
	if err := s.ensureProgressTopic(ctx); err != nil {
		return err
	}
	client, timeout := s.client(), s.transactionTimeout()
	err := whileBusy(ctx, func() error {
		r, err := client.InitProducerID(ctx, &kafka.InitProducerIDRequest{TransactionalID: p.id,
			TransactionTimeoutMs: int(timeout.Milliseconds()), ProducerID: -1, ProducerEpoch: -1})
		if err == nil {
			err = r.Error
		}
		if err == nil {
			p.session = *r.Producer
		}
		return err
	})
	if errors.Is(err, kafka.InvalidTransactionTimeout) {
		s.shortTransactions.Store(true) // the brokers allow less than by default
	}
	if err != nil {
		return fmt.Errorf("initialize the producer %s: %w", p.id, err)
	}
	p.timeout = timeout
	if p.progress, err = s.readProgress(ctx, client, p.id, j.session.LedgerID()); err != nil {
		return err
	}
	p.unchecked = true
	p.sequences = make(map[topicPartition]int32)
	// Answered after all that the buffer had to tell by now: leases that are not held any more
	// are revoked.
	if err := j.session.Ack(ctx, &delivery.Ack{}); err != nil {
		return fmt.Errorf("ask the buffer whether the leases are held: %w", err)
	}
	p.ready = true
	return nil
}

// transactionTimeout is what producers are to be initialized with.
func (s *Sink) transactionTimeout() time.Duration {
	if s.allowance.longest() > patientFrom && !s.shortTransactions.Load() {
		return patientTimeout
	}
	return transactionTimeout
}

// keepDead remembers the dead letters of a transaction for the following ones of the same job.
func (j *job) keepDead() {
	for _, dead := range j.dead {
		for _, d := range dead {
			if nextOf(&d) > d.Offset+1 {
				continue // a malformed payload is so again
			}
			if j.rejected == nil {
				j.rejected = make(map[int64]string)
			}
			j.rejected[d.Offset] = d.Reason
		}
	}
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
		for topic := range request.Topics { // the coordinator may know better which partitions there are
			s.transport.Stale(topic)
		}
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
	text, err := next.encode()
	if err != nil {
		j.crowded = true
		j.keepDead()
		return err
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

// abort spares the readers of the target to wait for the transaction's timeout. Whether it
// succeeds does not matter: the producer is initialized anew.
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

func (s *Sink) client() *kafka.Client { return s.transport.Client(s.timing.request) }

// ensureProgressTopic creates the progress topic where it is missing.
func (s *Sink) ensureProgressTopic(ctx context.Context) error {
	s.mu.Lock()
	there := s.progressThere
	s.mu.Unlock()
	if there {
		return nil
	}
	topics, _, err := s.transport.Topics(ctx, []string{progressTopic}, false)
	if err == nil {
		err = topics[progressTopic].Err
	}
	if errors.Is(err, kafka.UnknownTopicOrPartition) {
		_, err = s.transport.CreateTopic(ctx, progressTopic, 1, -1, s.timing.metadata)
	}
	if err != nil {
		return fmt.Errorf("the topic %s, which exactly_once needs (one partition, no records): %w", progressTopic, err)
	}
	s.mu.Lock()
	s.progressThere = true
	s.mu.Unlock()
	return nil
}
