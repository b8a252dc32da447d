// Package peers measures the queues that the buffer is compared with, on the same batches as
// BenchmarkBuffer: a batch of 1,000 records is one message, which is the best case for them.
// `make bench` runs both in one go; docs/performance.md has the figures.
package peers

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nsqio/go-diskqueue"
)

const records = 1000

var sizes = []int{200, 2048}

func batch(size int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), records*size/16) }

func report(b *testing.B, size int) {
	b.StopTimer()
	b.SetBytes(records * int64(size))
	b.ReportMetric(float64(b.N)*records/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkDiskqueue puts and takes at the same time, with an fsync for every 2 MiB, as large as
// the buffer's groups.
func BenchmarkDiskqueue(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			payload := batch(size)
			syncEvery := int64(max(1, 2<<20/len(payload)))
			q := diskqueue.New("bench", b.TempDir(), 128<<20, 1, 64<<20, syncEvery, time.Second, func(diskqueue.LogLevel, string, ...any) {})
			defer q.Close()
			b.ResetTimer()
			taken := make(chan struct{})
			go func() {
				defer close(taken)
				for range b.N {
					<-q.ReadChan()
				}
			}()
			for range b.N {
				if err := q.Put(payload); err != nil {
					b.Fatal(err)
				}
			}
			<-taken
			report(b, size)
		})
	}
}

// BenchmarkJetStream publishes to a stream with file storage, embedded, over loopback, and
// consumes it with explicit acks at the same time: as it comes (an fsync every two minutes), and
// with sync_interval: always, which is what durable means.
func BenchmarkJetStream(b *testing.B) {
	for _, durable := range []bool{true, false} {
		for _, size := range sizes {
			name := "as-it-comes"
			if durable {
				name = "durable"
			}
			b.Run(fmt.Sprintf("%s/%dB", name, size), func(b *testing.B) { benchJetStream(b, size, durable) })
		}
	}
}

func benchJetStream(b *testing.B, size int, durable bool) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: b.TempDir(), MaxPayload: 8 << 20,
		MaxPending: 256 << 20, SyncAlways: durable, NoLog: true, NoSigs: true})
	if err != nil {
		b.Fatal(err)
	}
	go s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		b.Fatal("the server does not come up")
	}
	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(64))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}, Storage: jetstream.FileStorage, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		b.Fatal(err)
	}
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1024})
	if err != nil {
		b.Fatal(err)
	}
	payload := batch(size)
	b.ResetTimer()
	done := make(chan struct{})
	left := b.N
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		if err := m.Ack(); err != nil {
			b.Error(err)
		}
		if left--; left == 0 {
			close(done)
		}
	}, jetstream.PullMaxBytes(32<<20))
	if err != nil {
		b.Fatal(err)
	}
	defer consuming.Stop()
	for range b.N {
		for {
			_, err := js.PublishAsync("s", payload)
			if err == nil {
				break
			}
			if err != jetstream.ErrTooManyStalledMsgs {
				b.Fatal(err)
			}
		}
	}
	<-js.PublishAsyncComplete()
	<-done
	report(b, size)
}
