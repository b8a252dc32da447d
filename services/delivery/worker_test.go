package delivery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// fakeSink hands every session to the test.
type fakeSink struct {
	serve  func(ctx context.Context, s Session) error
	probe  func() error
	closed bool
}

func (f *fakeSink) Serve(ctx context.Context, s Session) error { return f.serve(ctx, s) }
func (f *fakeSink) Ordering() spillwayv1.Ordering              { return spillwayv1.Ordering_ORDERING_NONE }
func (f *fakeSink) Close() error                               { f.closed = true; return nil }
func (f *fakeSink) Probe(context.Context) error {
	if f.probe == nil {
		return nil
	}
	return f.probe()
}

// ackAll acks every lease on its own until there are no more.
func ackAll(ctx context.Context, s Session) error {
	for {
		select {
		case l, ok := <-s.Leases():
			if !ok {
				return s.Err()
			}
			if err := s.Ack(ctx, &Ack{Leases: []AckedLease{{Lease: l}}}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// running is a Service whose Run the test can end.
type running struct {
	*Service
	fake *fakeBuffer
	log  *logBuffer
	stop func() // ends Run's ctx and waits for it

	mu    sync.Mutex
	ready []bool
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func (r *running) readiness() []bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ready)
}

func runService(t *testing.T, cfg *config.Delivery, sink Sink, refuse func() error) *running {
	return runServiceWith(t, cfg, sink, func(f *fakeBuffer) { f.refuse = refuse })
}

func runServiceWith(t *testing.T, cfg *config.Delivery, sink Sink, prepare func(*fakeBuffer)) *running {
	r := &running{fake: startFakeBuffer(t), log: &logBuffer{}}
	prepare(r.fake)
	cfg.Subscription = "q/s"
	s, err := New("d", cfg, []string{"buffer:7400"}, sink, Deps{
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Registerer: prometheus.NewRegistry(), Instance: "me", Dial: r.fake.dial,
		OnReady: func(ready bool, _ string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ready = append(r.ready, ready)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Service = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// stream is the next session's stream, past its first credit.
func (r *running) stream(t *testing.T) *fakeStream {
	t.Helper()
	s := <-r.fake.streams
	s.t = t
	s.credit()
	return s
}

// answerAll accepts every ack until the client ends the stream.
func (s *fakeStream) answerAll() {
	for m := range s.requests {
		if a := m.GetAck(); a != nil {
			s.answer(&spillwayv1.AckResult{Id: a.Id})
		}
	}
}

func TestServiceDeliversAndDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &fakeSink{serve: ackAll}
		r := runService(t, &config.Delivery{Ordering: "partition"}, sink, nil)
		stream := r.stream(t)
		if stream.open.Ordering != spillwayv1.Ordering_ORDERING_PARTITION || stream.open.Consumer != "me" {
			t.Errorf("opened with %v, want the configured ordering", stream.open)
		}
		go stream.answerAll()
		stream.lease(none(1, "a", "b"))
		second := none(2, "c")
		second.Attempt = 2
		stream.lease(second)
		synctest.Wait()

		d := r.status()
		if d.State != "running" || d.SessionId != 7 || d.Records != 3 || d.Leases != 0 || d.LastError != "" {
			t.Errorf("status is %v", d)
		}
		if n := r.counters.redeliveries.Load(); n != 1 {
			t.Errorf("counted %d redeliveries", n)
		}
		r.stop()
		if !sink.closed {
			t.Error("the sink was not closed")
		}
		if got := r.readiness(); !slices.Equal(got, []bool{false, false, true, false, false}) {
			t.Errorf("readiness was %v", got)
		}
	})
}

func TestServiceDrainHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runService(t, &config.Delivery{}, &fakeSink{serve: func(ctx context.Context, s Session) error {
			<-s.Leases() // closed by the drain
			<-ctx.Done()
			return ctx.Err()
		}}, nil)
		stream := r.stream(t)
		stream.lease(none(1, "a"))
		synctest.Wait()
		began := time.Now()
		r.stop()
		if took := time.Since(began); took != drainTimeout {
			t.Errorf("stopped after %s, want %s", took, drainTimeout)
		}
	})
}

func TestServiceKeepsTryingTheBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		r := runService(t, &config.Delivery{}, &fakeSink{serve: ackAll}, func() error {
			if attempts++; attempts <= 50 {
				return status.Error(codes.NotFound, "no such subscription")
			}
			return nil
		})
		time.Sleep(10 * time.Second) // of the bubble's clock
		if d := r.status(); d.State != "retrying" || !strings.Contains(d.LastError, "no such subscription") {
			t.Errorf("status is %v", d)
		}
		stream := r.stream(t)
		go stream.answerAll()
		synctest.Wait()
		if d := r.status(); d.State != "running" || d.LastError != "" {
			t.Errorf("status is %v", d)
		}
		if begin, over := r.log.count("no session with the buffer; retrying"), r.log.count("recovered: a session with the buffer is open"); begin != 1 || over != 1 {
			t.Errorf("%d lines for the beginning, %d for the end, want one each", begin, over)
		}
	})
}

func TestServiceOpensANewSessionAfterALostOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var served []error
		r := runService(t, &config.Delivery{}, &fakeSink{serve: func(ctx context.Context, s Session) error {
			err := ackAll(ctx, s)
			served = append(served, err)
			return err
		}}, nil)
		first := r.stream(t)
		first.end <- status.Error(codes.Unavailable, "restart")
		second := r.stream(t)
		go second.answerAll()
		second.lease(none(1, "a"))
		synctest.Wait()
		if r.counters.records.Load() != 1 || r.counters.sessions.Load() != 2 {
			t.Errorf("%d records, %d sessions", r.counters.records.Load(), r.counters.sessions.Load())
		}
		r.stop()
		if len(served) != 2 || served[0] == nil || served[1] != nil {
			t.Errorf("the sink returned %v", served)
		}
		if got := r.readiness(); !slices.Equal(got, []bool{false, false, true, false, true, false, false}) {
			t.Errorf("readiness was %v", got)
		}
	})
}

func TestServiceRetriesAFailingSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		r := runService(t, &config.Delivery{}, &fakeSink{serve: func(ctx context.Context, s Session) error {
			if calls++; calls <= 3 {
				return errors.New("disk on fire")
			}
			return ackAll(ctx, s)
		}}, nil)
		var stream *fakeStream
		for range 4 {
			stream = <-r.fake.streams
			stream.t = t
		}
		go stream.answerAll()
		if d := r.status(); d.State != "retrying" || d.LastError != "disk on fire" {
			t.Errorf("status is %v", d)
		}
		stream.lease(none(1, "a"))
		synctest.Wait()
		if d := r.status(); d.State != "running" || d.LastError != "" {
			t.Errorf("status after an ack is %v", d)
		}
		if begin, over := r.log.count("the destination fails; retrying"), r.log.count("recovered: the destination takes records again"); begin != 1 || over != 1 {
			t.Errorf("%d lines for the beginning, %d for the end, want one each", begin, over)
		}
	})
}

func TestServiceWaitsForTheDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back atomic.Bool
		r := runService(t, &config.Delivery{}, &fakeSink{serve: ackAll, probe: func() error {
			if back.Load() {
				return nil
			}
			return errors.New("connection refused")
		}}, nil)
		time.Sleep(time.Minute) // of the bubble's clock
		if len(r.fake.streams) != 0 || slices.Contains(r.readiness(), true) {
			t.Error("a session was opened while the destination is away")
		}
		back.Store(true)
		go r.stream(t).answerAll()
		synctest.Wait()
		if got := r.readiness(); !got[len(got)-1] {
			t.Errorf("readiness was %v", got)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	sink := &fakeSink{}
	deps := Deps{Log: slog.New(slog.DiscardHandler)}
	if _, err := New("d", &config.Delivery{}, nil, sink, deps); err == nil {
		t.Error("no buffer: no error")
	}
	if _, err := New("d", &config.Delivery{Ordering: "alphabetical"}, []string{"a:1"}, sink, deps); err == nil || !strings.Contains(err.Error(), "delivery.d.ordering") {
		t.Errorf("bad ordering: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := newCounters()
	if err := c.register(registry, "d", func() int { return 2 }, nil); err != nil {
		t.Fatal(err)
	}
	c.settled(AckedLease{Lease: NewLease(1, nil, 0, 3, 3, []byte("12345")), DeadLetters: make([]DeadLetter, 1)}, wholeAck)
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP spillway_delivery_dead_letters_total Records dead-lettered.
# TYPE spillway_delivery_dead_letters_total counter
spillway_delivery_dead_letters_total{delivery="d"} 1
# HELP spillway_delivery_held_leases Batches held now.
# TYPE spillway_delivery_held_leases gauge
spillway_delivery_held_leases{delivery="d"} 2
# HELP spillway_delivery_records_total Records delivered and acked.
# TYPE spillway_delivery_records_total counter
spillway_delivery_records_total{delivery="d"} 2
`), "spillway_delivery_records_total", "spillway_delivery_dead_letters_total", "spillway_delivery_held_leases"); err != nil {
		t.Error(err)
	}
}

// TestAges: a batch that was delivered counts with the age of its oldest record, whatever a
// transform does to timestamps; records without one have none.
func TestAges(t *testing.T) {
	c := newCounters()
	for _, timestamps := range [][]int64{{0, time.Now().Add(-time.Hour).UnixMilli(), time.Now().UnixMilli()}, {0, -1}} {
		var payload []byte
		for i, ms := range timestamps {
			payload = recordbatch.AppendRecord(payload, &recordbatch.Record{OffsetDelta: int64(i), TimestampMs: ms, Value: []byte("x")})
		}
		l := NewLease(1, nil, 0, int64(len(timestamps)), len(timestamps), payload)
		if err := l.Records(func(_ int64, r *recordbatch.Record) error { r.TimestampMs = 1; return nil }); err != nil {
			t.Fatal(err)
		}
		c.settled(AckedLease{Lease: l}, wholeAck)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(c.ages)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if h := families[0].Metric[0].Histogram; h.GetSampleCount() != 1 || h.GetSampleSum() < 3600 || h.GetSampleSum() > 3700 {
		t.Errorf("%d ages with a sum of %v, want one of an hour", h.GetSampleCount(), h.GetSampleSum())
	}
}
