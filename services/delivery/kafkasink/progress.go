package kafkasink

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	// maxProgressBytes is below what brokers take by default, offset.metadata.max.bytes: 4096.
	maxProgressBytes = 4000
	// maxPieces and maxTargets bound the ranges and the target topics that one transaction adds
	// to the progress. One that has as many before it is acked first, so that it is always short
	// enough.
	maxPieces  = 50
	maxTargets = 80
)

// progress is what was delivered of a source partition in transactions, and is not known to be
// acked.
//
// It is found on the target cluster by name, and names come again: with a queue whose data was
// lost, with a topic that was deleted and created again. So it says of which ledger it is and
// what the target topics were. What cannot prove by both that it is about these records does not
// count: they are delivered twice at the most, and none is left out.
type progress struct {
	ledger  string
	epoch   int64
	targets map[string]bool // marks of the target topics
	ranges  []span          // ascending, disjoint
}

// span is the offsets [first, next).
type span struct{ first, next int64 }

// markOf is the short name of a target topic in a progress. It is another one for a topic that is
// created again.
func markOf(name string, id [16]byte) string {
	sum := sha256.Sum256(append(id[:], name...))
	return base64.RawURLEncoding.EncodeToString(sum[:6])
}

// begin forgets what cannot be leased again before a job that begins with l: what is before it,
// since leases come in order, and what another epoch has.
func (p *progress) begin(l *delivery.Lease) {
	if p.epoch != l.Epoch {
		*p = progress{ledger: p.ledger, epoch: l.Epoch}
	}
	p.remove(math.MinInt64, l.First)
}

// has says whether an offset was delivered, to the target topics as they were then.
func (p *progress) has(offset int64) bool { return contains(p.ranges, offset) }

func contains(ranges []span, offset int64) bool {
	_, found := slices.BinarySearchFunc(ranges, offset, func(r span, offset int64) int {
		switch {
		case r.next <= offset:
			return -1
		case r.first > offset:
			return 1
		}
		return 0
	})
	return found
}

// add adds what a job's transaction delivers: its leases as far as it goes, but their dead
// letters.
func (p *progress) add(j *job) {
	p.targets = maps.Clone(p.targets)
	if p.targets == nil {
		p.targets = make(map[string]bool)
	}
	for i := range j.topics {
		if t := &j.topics[i]; len(t.groups) > 0 {
			p.targets[markOf(t.name, t.id)] = true
		}
	}
	p.ranges = joined(append(slices.Clone(p.ranges), j.pieces()...))
}

// pieces returns the ranges that the transaction of a job delivers.
func (j *job) pieces() []span {
	var all []span
	for i, l := range j.leases {
		if j.dropped[i] {
			continue
		}
		at, end := l.First, j.covered[i]
		slices.SortFunc(j.dead[i], func(a, b delivery.DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) })
		for _, d := range j.dead[i] {
			if d.Offset > at {
				all = append(all, span{at, d.Offset})
			}
			at = max(at, nextOf(&d))
		}
		if at < end {
			all = append(all, span{at, end})
		}
	}
	return joined(all)
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
	if p.ranges = left; len(left) == 0 {
		p.targets = nil
	}
}

// crowded says whether the progress should be acked before more is added.
func (p *progress) crowded() bool { return len(p.ranges) > maxPieces || len(p.targets) > maxTargets }

// end is the offset after the highest that was delivered.
func (p *progress) end() int64 {
	if len(p.ranges) == 0 {
		return 0
	}
	return p.ranges[len(p.ranges)-1].next
}

// encode writes the progress as text: "1", then the epoch, the ledger and the marks of the target
// topics with commas, separated by slashes; and each range as the distance from the end of the
// one before, a colon, and its length. The version before, which wrote no ledger and no marks,
// reads it without them.
func (p *progress) encode() (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "1 %d/%s/%s", p.epoch, p.ledger, strings.Join(slices.Sorted(maps.Keys(p.targets)), ","))
	at := int64(0)
	for _, r := range p.ranges {
		fmt.Fprintf(&b, " %d:%d", r.first-at, r.next-r.first)
		at = r.next
	}
	if b.Len() > maxProgressBytes {
		return "", errCrowded
	}
	return b.String(), nil
}

// errCrowded is about a progress that is too long to be written; parts of it are acked before the
// next attempt.
var errCrowded = errors.New("the progress is too scattered for one transaction")

func decodeProgress(text string) (progress, error) {
	var p progress
	fields := strings.Fields(text)
	bad := fmt.Errorf("%q was not written by this version of Spillway", text)
	if len(fields) < 2 || fields[0] != "1" {
		return p, bad
	}
	epoch, proof, proven := strings.Cut(fields[1], "/")
	if _, err := fmt.Sscanf(epoch, "%d", &p.epoch); err != nil {
		return p, bad
	}
	if proven {
		ledger, marks, found := strings.Cut(proof, "/")
		if !found {
			return p, bad
		}
		p.ledger, p.targets = ledger, make(map[string]bool)
		for mark := range strings.SplitSeq(marks, ",") {
			p.targets[mark] = true
		}
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
	p.ranges = joined(p.ranges)
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

// readProgress reads what a producer's transactions have delivered, if it is about a ledger.
func (s *Sink) readProgress(ctx context.Context, client *kafka.Client, id, ledger string) (progress, error) {
	none := progress{ledger: ledger}
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
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("read the progress of %s: %w", id, err)
	}
	if len(of) == 0 || of[0].CommittedOffset < 0 {
		return none, nil
	}
	p, err := decodeProgress(of[0].Metadata)
	if err != nil {
		return none, fmt.Errorf("progress of %s: %w", id, err)
	}
	if p.ledger != ledger || ledger == "" {
		s.foreign(ledger, p.ledger)
		return none, nil
	}
	return p, nil
}

// foreign tells, once for each ledger, that there is progress that does not count.
func (s *Sink) foreign(ledger, other string) {
	s.mu.Lock()
	told := s.toldOf[ledger]
	s.toldOf[ledger] = true
	s.mu.Unlock()
	switch {
	case told:
	case ledger == "":
		s.log.Warn("the buffer does not tell which ledger it has, so a batch that was produced and not acknowledged when a delivery died is produced again; upgrade the buffer")
	default:
		s.log.Warn("the target cluster has progress of other data of this queue, or of the version before; it does not count, so what that had produced and not acknowledged is produced again",
			"ledger", ledger, "other", other)
	}
}

// currentMarks returns the marks, by name, of the target topics of those records of a job that
// the progress has.
func (s *Sink) currentMarks(ctx context.Context, j *job, p *producer) (map[string]string, error) {
	if len(p.progress.ranges) == 0 {
		return nil, nil
	}
	names := make(map[string]bool)
	for _, l := range j.leases {
		overlaps := slices.ContainsFunc(p.progress.ranges, func(r span) bool { return r.first < l.Next && l.First < r.next })
		if !overlaps || l.Revoked() {
			continue
		}
		err := l.Records(func(offset int64, r *recordbatch.Record) error {
			if p.progress.has(offset) {
				name, problem := s.topic.append(j.name[:0], j.source.topic, r.Headers)
				if j.name = name; problem == "" && !names[string(name)] {
					names[string(name)] = true
				}
				if !s.perRecord {
					return errEnough
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			continue // malformed: nothing of it was delivered
		}
	}
	all := slices.Sorted(maps.Keys(names))
	if p.unchecked {
		s.transport.Stale(all...)
	}
	topics, _, err := s.transport.Topics(ctx, all, false)
	if err != nil {
		return nil, fmt.Errorf("ask %s for metadata: %w", s.brokers, err)
	}
	marks := make(map[string]string, len(all))
	for _, name := range all {
		topic := topics[name]
		switch {
		case topic.Err == nil:
			marks[name] = markOf(name, topic.ID)
		case errors.Is(topic.Err, kafka.UnknownTopicOrPartition), errors.Is(topic.Err, kafka.InvalidTopic), errors.Is(topic.Err, kafka.TopicAuthorizationFailed):
		default:
			return nil, fmt.Errorf("metadata of topic %s: %w", name, topic.Err)
		}
	}
	p.unchecked = false
	return marks, nil
}

// ackProgress acks what the transactions of a job have delivered so far, and keeps the leases for
// the rest.
func (s *Sink) ackProgress(ctx context.Context, p *producer, j *job) error {
	var ack delivery.Ack
	for _, l := range j.leases {
		var only []*spillwayv1.OffsetRange
		for _, r := range j.delivered {
			if first, next := max(r.first, l.First), min(r.next, l.Next); first < next {
				only = append(only, &spillwayv1.OffsetRange{First: first, Next: next})
			}
		}
		if len(only) > 0 && !l.Revoked() {
			ack.Leases = append(ack.Leases, delivery.AckedLease{Lease: l, Only: only})
		}
	}
	if len(ack.Leases) > 0 {
		if err := j.session.Ack(ctx, &ack); err != nil {
			return fmt.Errorf("ack a part of a batch: %w", err)
		}
	}
	for _, r := range j.delivered {
		p.progress.remove(r.first, r.next)
	}
	j.acked = joined(append(j.acked, j.delivered...))
	return nil
}
