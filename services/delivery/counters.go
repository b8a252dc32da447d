package delivery

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/telemetry"
)

// counters count since the start of the process, for the metrics and for GetDelivery.
type counters struct {
	records, bytes, deadLetters            atomic.Int64
	redeliveries, nacks, damaged, sessions atomic.Int64
	refusedAcks, copied, notCopied         atomic.Int64

	acks, ages telemetry.Seconds
}

// newCounters begins at 0.
func newCounters() *counters {
	return &counters{
		acks: telemetry.NewCallSeconds("spillway_delivery_ack_seconds", "Time from an ack to the buffer's answer, which comes after its fsync."),
		ages: telemetry.NewAgeSeconds("spillway_delivery_record_age_seconds", "Age of the oldest record of each batch when it was delivered and acked, by its Kafka timestamp."),
	}
}

// settled counts what a message acked of a lease, and returns the number of dead letters that
// were not counted before.
func (c *counters) settled(l AckedLease, part ackPart) (deadLetters int64) {
	dead := l.dead()
	if part != withoutDeadLetters {
		deadLetters = dead
		c.deadLetters.Add(dead)
	}
	if part == deadLettersOnly {
		return deadLetters
	}
	records, bytes := l.Lease.records, l.Lease.recordBytes
	if len(l.Only) > 0 {
		records, bytes = l.Lease.within(l.Only)
	}
	c.records.Add(max(records-dead, 0))
	c.bytes.Add(bytes)
	if oldest := l.Lease.oldestMs; oldest > 0 {
		c.ages.Note(max(time.Since(time.UnixMilli(oldest)), 0))
	}
	return deadLetters
}

// dead counts the dead letters. Where the payload cannot be read, they are as many as the batch
// says.
func (al *AckedLease) dead() int64 {
	single := !slices.ContainsFunc(al.DeadLetters, func(d DeadLetter) bool { return d.Next > d.Offset+1 })
	if single {
		return int64(len(al.DeadLetters))
	}
	dead := make(ranges, len(al.DeadLetters))
	for i := range al.DeadLetters {
		dead[i] = al.DeadLetters[i].offsets()
	}
	slices.SortFunc(dead, func(a, b *spillwayv1.OffsetRange) int { return cmp.Compare(a.First, b.First) })
	n, _ := al.Lease.within(dead)
	var reader recordbatch.Reader
	reader.Reset(al.Lease.Payload)
	readable := 0
	for reader.Next() {
		readable++
	}
	if reader.Err() != nil {
		n += int64(max(al.Lease.RecordCount-readable, 1))
	}
	return n
}

// within counts the records that are to be delivered of some ranges, and their bytes.
func (l *Lease) within(only ranges) (records, bytes int64) {
	var reader recordbatch.Reader
	reader.Reset(l.Payload)
	settled, filtered := ranges(l.settled), l.filtered
	for reader.Next() {
		r := reader.Record()
		if offset := l.First + r.OffsetDelta; only.contain(offset) && !settled.contain(offset) && !filtered.contain(offset) {
			records++
			bytes += int64(r.Size())
		}
	}
	return records, bytes
}

// register exports the counters, the number of leases held, and of files when there are any to
// have.
func (c *counters) register(r prometheus.Registerer, delivery string, leases func() int, files FileLister) error {
	if r == nil {
		return nil
	}
	r = prometheus.WrapRegistererWith(prometheus.Labels{"delivery": delivery}, r)
	collectors := []prometheus.Collector{c.acks, c.ages, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "spillway_delivery_held_leases", Help: "Batches held now.",
	}, func() float64 { return float64(leases()) })}
	if files != nil {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_delivery_open_files", Help: "Files in use, and those of others that are to be finished.",
		}, func() float64 { return float64(len(files.OpenFiles())) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_delivery_stuck_files", Help: "Files that could not be finished so far; ListOpenFiles says why.",
		}, func() float64 {
			stuck := 0
			for _, f := range files.OpenFiles() {
				if f.Trouble != "" {
					stuck++
				}
			}
			return float64(stuck)
		}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_delivery_open_file_bytes", Help: "Bytes that are committed to the open files.",
		}, func() float64 {
			bytes := int64(0)
			for _, f := range files.OpenFiles() {
				bytes += f.CommittedBytes
			}
			return float64(bytes)
		}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_delivery_oldest_open_file_seconds", Help: "Since when the oldest file of this session is in use; 0 without any.",
		}, func() float64 {
			age := time.Duration(0)
			for _, f := range files.OpenFiles() {
				if f.OpenedAt != nil {
					age = max(age, time.Since(f.OpenedAt.AsTime()))
				}
			}
			return age.Seconds()
		}))
	}
	for _, m := range []struct {
		name, help string
		value      *atomic.Int64
	}{
		{"records_total", "Records delivered and acked.", &c.records},
		{"bytes_total", "Key, value and header bytes of the records of acked batches.", &c.bytes},
		{"dead_letters_total", "Records dead-lettered.", &c.deadLetters},
		{"dead_letter_topic_records_total", "Copies of dead letters written to the topic for them.", &c.copied},
		{"dead_letter_topic_refused_records_total", "Dead letters of which that topic takes no copy, as too large.", &c.notCopied},
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
