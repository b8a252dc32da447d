package delivery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spillwayio/spillway/services/internal/config"
)

// TestSessionsThatFailAtOnce: the buffer opens every session and ends it. They come less and less
// often, with one line in the log; one that lives is the end of it.
func TestSessionsThatFailAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runService(t, &config.Delivery{Memory: memory, Kafka: &config.Kafka{}}, &fakeSink{serve: ackAll}, nil)
		sessions := 0
		for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); sessions++ {
			s := <-r.fake.streams
			s.end <- status.Error(codes.Internal, "broken")
		}
		if sessions > 60 {
			t.Errorf("%d sessions in two minutes", sessions)
		}
		if n := r.log.count("level=WARN"); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		s := r.stream(t)
		time.Sleep(shortLived + time.Second)
		if n := r.log.count("recovered: a session with the buffer is open"); n != 1 {
			t.Errorf("%d lines that it is over, want 1", n)
		}
		if ready := r.readiness(); !ready[len(ready)-1] {
			t.Error("not ready with a session")
		}
		go s.answerAll()
		r.stop()
	})
}

// TestASinkThatHangs: the sink's Serve never returns. A session that was lost is not ready any
// more, and the process ends all the same when it is told to, without closing the sink.
func TestASinkThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sink := &fakeSink{serve: func(context.Context, Session) error { <-release; return nil }}
		r := runService(t, &config.Delivery{Memory: memory, Kafka: &config.Kafka{}}, sink, nil)
		s := r.stream(t)
		synctest.Wait()
		s.end <- status.Error(codes.Internal, "broken")
		synctest.Wait()
		if ready := r.readiness(); !slices.Equal(ready[len(ready)-2:], []bool{true, false}) {
			t.Errorf("readiness went %v, want it to end with the session", ready)
		}
		began := time.Now()
		r.stop()
		if took := time.Since(began); took > drainTimeout+2*closeTimeout {
			t.Errorf("it took %s to end", took)
		}
		if sink.closed || r.log.count("did not stop") != 1 {
			t.Error("the sink was closed while it worked, or nothing was said")
		}
		close(release)
	})
}

// TestAProbeThatHangs does not keep the process from ending.
func TestAProbeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sink := &fakeSink{serve: ackAll, probe: func() error { <-release; return nil }}
		r := runService(t, &config.Delivery{Memory: memory, Kafka: &config.Kafka{}}, sink, nil)
		synctest.Wait()
		began := time.Now()
		r.stop()
		if took := time.Since(began); took > 2*closeTimeout || sink.closed {
			t.Errorf("it took %s to end; the sink is closed: %v", took, sink.closed)
		}
		close(release)
	})
}

// TestTheSinkIsClosedWhateverTheConnectionDoes: that the connection to the buffer cannot be
// closed is an error, and no reason to leave the destination open.
func TestTheSinkIsClosedWhateverTheConnectionDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := startFakeBuffer(t)
		var conn *grpc.ClientConn
		sink := &fakeSink{serve: ackAll}
		s, err := New("d", &config.Delivery{Subscription: "q/s", Kafka: &config.Kafka{}}, []string{"buffer:7400"}, sink, Deps{Log: slog.New(slog.DiscardHandler), Instance: "me",
			Dial: func(addr string) (c *grpc.ClientConn, err error) { conn, err = fake.dial(addr); return conn, err }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		<-fake.streams
		if err := conn.Close(); err != nil { // closing it twice is an error
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err == nil || !sink.closed {
			t.Errorf("Run: %v; the sink is closed: %v", err, sink.closed)
		}
	})
}

// TestTheSubscriptionIsDeleted: the session's error says so, besides that it is lost.
func TestTheSubscriptionIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		stream.credit()
		stream.end <- status.Error(codes.NotFound, `no such subscription: "q/s"`)
		<-s.Lost()
		if err := s.Err(); !errors.Is(err, ErrSubscriptionGone) || !errors.Is(err, ErrSessionLost) {
			t.Errorf("error is %v", err)
		}
	})
}
