package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestKafkaStoreSpeed measures a queue that is kept by three brokers, of which two must have each
// write, in turn with one that is kept in a directory: how long the ack of a batch takes that comes
// alone, and how many records a second pass through its memory, with acks of what came together. A
// destination that keeps up has nothing spilled in either.
func TestKafkaStoreSpeed(t *testing.T) {
	const alone, batches, rounds = 300, 1500, 3
	addresses := addressesOf(startBrokers(t, 3))
	places := []string{"", fmt.Sprintf("store: {kafka: {brokers: [%s], namespace: e2e-%d, replication: 3}}, ", strings.Join(addresses, ", "), time.Now().UnixNano())}
	var drivers []*driver
	for i, store := range places {
		dir := t.TempDir()
		file := filepath.Join(dir, "spillway.yaml")
		b := newService(t, dir, []string{"directory", "kafka"}[i], "buffer", "-c", file)
		config := fmt.Sprintf("buffer: {listen: %q, http: %q, data_dir: %q, queues: {c: {%smemory: {records: 1000000, bytes: 64MiB}, spill_after: 1m, commit_after: delivered, subscriptions: {s: {}}}}}\n",
			b.grpc, b.http, filepath.Join(dir, "data"), store)
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if store != "" {
			if out, err := exec.Command(binary, "store", "init", "-c", file).CombinedOutput(); err != nil {
				t.Fatalf("store init: %v\n%s", err, out)
			}
		}
		b.start()
		b.waitReady()
		drivers = append(drivers, newDriver(t, b))
	}
	var rates [2][]float64
	for _, d := range drivers {
		var took []time.Duration
		for range alone {
			d.append(1)
			began := time.Now()
			d.ack(1)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("%s: a batch that comes alone is acked after %.1f ms, p99 %.1f ms", d.name, 1000*took[alone/2].Seconds(), 1000*took[alone*99/100].Seconds())
	}
	for range rounds {
		for i, d := range drivers {
			began := time.Now()
			go d.append(batches)
			d.ack(batches)
			rates[i] = append(rates[i], batches*driverRecords/time.Since(began).Seconds())
		}
	}
	for i, d := range drivers {
		slices.Sort(rates[i])
		t.Logf("%s: %.0f records a second, %.0f to %.0f", d.name, rates[i][rounds/2], rates[i][0], rates[i][rounds-1])
	}
	if ratio := rates[1][rounds/2] / rates[0][rounds/2]; ratio < 0.5 {
		t.Errorf("a queue in Kafka has %.0f %% of one in a directory", 100*ratio)
	} else {
		t.Logf("a queue in Kafka has %.0f %% of one in a directory", 100*ratio)
	}
}

// driverRecords is how many records a batch of a driver has, of 200 bytes.
const driverRecords = 1000

// driver appends to a buffer's queue c, and delivers what it has appended.
type driver struct {
	t       *testing.T
	name    string
	in      grpc.BidiStreamingClient[spillwayv1.AppendRequest, spillwayv1.AppendResponse]
	out     grpc.BidiStreamingClient[spillwayv1.ConsumeRequest, spillwayv1.ConsumeResponse]
	leases  chan *spillwayv1.Lease
	results chan *spillwayv1.AckResult
	offset  int64
	acks    uint64
	payload []byte
}

func newDriver(t *testing.T, b *service) *driver {
	d := &driver{t: t, name: b.name, leases: make(chan *spillwayv1.Lease, 10_000), results: make(chan *spillwayv1.AckResult, 10_000)}
	for i := range int64(driverRecords) {
		d.payload = recordbatch.AppendRecord(d.payload, &recordbatch.Record{OffsetDelta: i, TimestampMs: 1_700_000_000_000, Value: make([]byte, 200)})
	}
	client := spillwayv1.NewBufferServiceClient(b.conn)
	var err error
	if d.in, err = client.Append(context.Background()); err != nil {
		t.Fatal(err)
	}
	if d.out, err = client.Consume(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Client: "speed"}}})
	d.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: &spillwayv1.SourcePartition{Cluster: "k", Topic: "t"}}}})
	d.ask(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: "c/s", Consumer: "speed", Ordering: spillwayv1.Ordering_ORDERING_NONE}}})
	d.ask(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 32 << 20}}})
	go func() { // ends with the stream
		for {
			m, err := d.in.Recv()
			if err != nil {
				return
			}
			if a := m.GetAppended(); a.GetStatus() != nil {
				t.Errorf("%s refused: %v", d.name, a)
			}
		}
	}()
	go func() {
		for {
			m, err := d.out.Recv()
			if err != nil {
				return
			}
			if l := m.GetLease(); l != nil {
				d.leases <- l
			}
			if r := m.GetAckResult(); r != nil {
				d.results <- r
			}
		}
	}()
	return d
}

func (d *driver) send(m *spillwayv1.AppendRequest) {
	if err := d.in.Send(m); err != nil {
		d.t.Errorf("%s: append: %v", d.name, err)
	}
}

func (d *driver) ask(m *spillwayv1.ConsumeRequest) {
	if err := d.out.Send(m); err != nil {
		d.t.Errorf("%s: consume: %v", d.name, err)
	}
}

// append sends so many batches.
func (d *driver) append(batches int) {
	crc := recordbatch.CRC(d.payload)
	for range batches {
		d.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{
			Source:      &spillwayv1.SourcePartition{Cluster: "k", Topic: "t"},
			FirstOffset: d.offset, NextOffset: d.offset + driverRecords, RecordCount: driverRecords,
			Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: crc, Payload: d.payload}}})
		d.offset += driverRecords
	}
}

// ack takes so many batches, acks what came together, and returns when all of that is durable.
func (d *driver) ack(batches int) {
	d.t.Helper()
	late := time.After(2 * time.Minute)
	sizes := make(map[uint64]int)
	for taken, left := 0, batches; left > 0; {
		var ack spillwayv1.Ack
		var bytes int64
		select {
		case l := <-d.leases:
			for more := true; more; {
				ack.Leases = append(ack.Leases, &spillwayv1.AckedLease{LeaseId: l.LeaseId})
				bytes += int64(len(l.Batch.Payload))
				select {
				case l = <-d.leases:
				default:
					more = false
				}
			}
			d.acks++
			ack.Id = d.acks
			sizes[ack.Id] = len(ack.Leases)
			taken += len(ack.Leases)
			d.ask(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Ack{Ack: &ack}})
			d.ask(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: bytes}}})
		case r := <-d.results:
			if r.GetStatus() != nil {
				d.t.Errorf("%s: ack: %v", d.name, r)
			}
			left -= sizes[r.Id]
		case <-late:
			d.t.Fatalf("%s: %d of %d batches taken, %d not acked", d.name, taken, batches, left)
		}
	}
}
