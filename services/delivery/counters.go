package delivery

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// counters count since the start of the process, for the metrics and for GetDelivery.
type counters struct {
	records, bytes, deadLetters            atomic.Int64
	redeliveries, nacks, damaged, sessions atomic.Int64
	refusedAcks                            atomic.Int64
}

// settled counts a lease that was acked.
func (c *counters) settled(l AckedLease) {
	records, bytes := l.Lease.records, l.Lease.recordBytes
	if len(l.Only) > 0 {
		records, bytes = l.Lease.within(l.Only)
	}
	dead := int64(len(l.DeadLetters))
	c.deadLetters.Add(dead)
	c.records.Add(records - dead)
	c.bytes.Add(bytes)
}

// within counts the records that are to be delivered of some ranges, and their bytes.
func (l *Lease) within(only ranges) (records, bytes int64) {
	var reader recordbatch.Reader
	reader.Reset(l.Payload)
	settled := ranges(l.settled)
	for reader.Next() {
		r := reader.Record()
		if offset := l.First + r.OffsetDelta; only.contain(offset) && !settled.contain(offset) {
			records++
			bytes += int64(r.Size())
		}
	}
	return records, bytes
}

// register exports the counters, and the number of leases held.
func (c *counters) register(r prometheus.Registerer, delivery string, leases func() int) error {
	if r == nil {
		return nil
	}
	r = prometheus.WrapRegistererWith(prometheus.Labels{"delivery": delivery}, r)
	collectors := []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "spillway_delivery_held_leases", Help: "Batches held now.",
	}, func() float64 { return float64(leases()) })}
	for _, m := range []struct {
		name, help string
		value      *atomic.Int64
	}{
		{"records_total", "Records delivered and acked.", &c.records},
		{"bytes_total", "Key, value and header bytes of the records of acked batches.", &c.bytes},
		{"dead_letters_total", "Records dead-lettered.", &c.deadLetters},
		{"redeliveries_total", "Batches received that had been leased before.", &c.redeliveries},
		{"nacks_total", "Batches given back.", &c.nacks},
		{"damaged_batches_total", "Batches given back because of a wrong checksum or broken compression.", &c.damaged},
		{"refused_acks_total", "Acks refused because a lease was no longer held.", &c.refusedAcks},
		{"sessions_total", "Sessions opened.", &c.sessions},
	} {
		collectors = append(collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "spillway_delivery_" + m.name, Help: m.help,
		}, func() float64 { return float64(m.value.Load()) }))
	}
	for _, collector := range collectors {
		if err := r.Register(collector); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
