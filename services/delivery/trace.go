package delivery

import (
	"strconv"
	"time"

	"github.com/spillwayio/spillway/services/internal/tracing"
)

// traced makes the spans of a session, if somebody wants traces.
type traced struct {
	tracer                 *tracing.Tracer // nil: nobody does
	subscription, consumer string
}

// lease notes that a lease came.
func (t *traced) lease(l *Lease) {
	if t.tracer != nil {
		l.tracer, l.came = t.tracer, time.Now()
	}
}

// commit begins the span of an ack: from when the first of its leases came, until the buffer has
// answered. In between the records became durable at the destination, which is an event of it. It
// is linked to what its records are part of.
func (t *traced) commit(ack *Ack) *tracing.Span {
	if t.tracer == nil || len(ack.Leases) == 0 {
		return nil
	}
	first := ack.Leases[0].Lease
	began, records, letters, same := first.came, int64(0), 0, true
	var links tracing.Links
	for i := range ack.Leases {
		l := ack.Leases[i].Lease
		if l.came.Before(began) {
			began = l.came
		}
		records += l.records
		letters += len(ack.Leases[i].DeadLetters) + len(l.refused)
		links.Join(&l.links)
		same = same && l.Source.GetTopic() == first.Source.GetTopic() && l.Source.GetPartition() == first.Source.GetPartition()
	}
	attributes := []tracing.Attribute{
		tracing.String("messaging.system", "kafka"), tracing.String("messaging.operation.type", "process"),
		tracing.Int("messaging.batch.message_count", records), tracing.String("spillway.subscription", t.subscription),
		tracing.String("spillway.consumer", t.consumer), tracing.Int("spillway.batches", len(ack.Leases)), tracing.Int("spillway.dead_letters", letters)}
	if same {
		attributes = append(attributes, tracing.String("messaging.destination.name", first.Source.GetTopic()),
			tracing.String("messaging.destination.partition.id", strconv.Itoa(int(first.Source.GetPartition()))), tracing.Int("messaging.kafka.offset", first.First))
	}
	span := t.tracer.Start("spillway.commit", began, &links, attributes...)
	span.Event("durable at the destination")
	return span
}
