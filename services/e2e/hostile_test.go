package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestHostileClient: somebody who opens 10,000 connections to the buffer, some with a weak token
// and as many streams as they take, some with none, some that say nothing, and floods it with
// calls, leaves a pipeline at 90 % of its rate or more: of what its source has meanwhile, which is
// as much as two cores take beside the attacker, who has the same cores. Quiet and attack come in
// turn.
func TestHostileClient(t *testing.T) {
	const (
		perSecond   = 2_000 // records
		turn        = 10 * time.Second
		connections = 5_000 // in each of two attacks
	)
	o := newOwned(t)
	createTopic(t, stack.kafka, o.topic, nil)
	createTopic(t, stack.kafka, o.out, nil)
	o.startRoute()
	source := newProducer(t, stack.kafka, o.topic)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := source.produce(perSecond*4, perSecond); err != nil {
				ended <- err
				return
			}
		}
	}()
	settled := func() int64 {
		t.Helper()
		n, _, err := o.topicState(o.topic)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, time.Minute, "records flow", func() error {
		if settled() < perSecond*2 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	type rates struct{ produced, delivered float64 } // records a second
	measure := func(sum *rates, during func()) {
		t.Helper()
		from, written, began := settled(), source.written.Load(), time.Now()
		during()
		seconds := time.Since(began).Seconds()
		sum.produced += float64(source.written.Load()-written) / seconds / 2
		sum.delivered += float64(settled()-from) / seconds / 2
	}
	var quiet, attacked rates
	for range 2 {
		measure(&quiet, func() { pause(t, turn) })
		measure(&attacked, func() { o.attack(turn, connections) })
	}
	t.Logf("records/s: %.0f of %.0f in quiet; %.0f of %.0f under attack", quiet.delivered, quiet.produced, attacked.delivered, attacked.produced)
	if attacked.delivered < 0.9*attacked.produced || attacked.produced < perSecond/2 {
		t.Errorf("%.0f records/s of %.0f under attack: less than 90 %%, or the source itself was starved", attacked.delivered, attacked.produced)
	}
	// A newcomer with rights gets in at once.
	conn, _ := o.caller(o.buffer, readerToken, "")
	if _, err := spillwayv1.NewBufferAdminServiceClient(conn).ListQueues(t.Context(), &spillwayv1.ListQueuesRequest{}); err != nil {
		t.Errorf("a reader after the attacks: %v", err)
	}
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	total := int(source.written.Load())
	eventually(t, time.Minute, "everything is delivered", func() error { return o.settled(total, "test") })
}

// attack opens connections for a time, and leaves them open until its end.
func (o *owned) attack(turn time.Duration, connections int) {
	t := o.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), turn)
	defer cancel()
	var wg sync.WaitGroup
	var opened, refused, passed atomic.Int64
	begin := time.Now()
	next := func() bool { // paces what all workers open
		n := opened.Add(1)
		if n > int64(connections) {
			return false
		}
		wait := time.Until(begin.Add(turn * time.Duration(n) / time.Duration(connections)))
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
			return true
		}
	}
	for worker := range 24 {
		wg.Go(func() {
			for next() {
				conn, err := net.DialTimeout("tcp", o.buffer.grpc, time.Second)
				if err != nil {
					refused.Add(1)
					continue
				}
				defer conn.Close()
				switch worker % 3 {
				case 0: // says nothing
				case 1: // half a message of HTTP/2, in plain text
					_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff\xff"))
				case 2: // gets through the handshake
					secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
					if secure.HandshakeContext(ctx) == nil {
						_, _ = secure.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
					}
				}
			}
		})
	}
	flood := func(token string, do func(conn *grpc.ClientConn) error) {
		conn, _ := o.caller(o.buffer, token, "")
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					switch status.Code(do(conn)) {
					case codes.OK:
						passed.Add(1)
					default:
						refused.Add(1)
					}
					time.Sleep(time.Millisecond) // the attacker has the same two cores
				}
			})
		}
	}
	list := func(conn *grpc.ClientConn) error {
		_, err := spillwayv1.NewBufferAdminServiceClient(conn).ListQueues(ctx, &spillwayv1.ListQueuesRequest{})
		return err
	}
	flood("", list)
	flood(strangerToken, list)
	flood(readerToken, list)
	flood(readerToken, func(conn *grpc.ClientConn) error { // streams that stay
		_, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		return err
	})
	flood("", func(conn *grpc.ClientConn) error {
		_, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
		return err
	})
	<-ctx.Done()
	wg.Wait()
	t.Logf("%d connections, %d calls passed, %d were refused", min(opened.Load(), int64(connections)), passed.Load(), refused.Load())
}
