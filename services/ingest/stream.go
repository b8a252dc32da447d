package ingest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// openTimeout bounds the wait for the buffer's answer to open.
const openTimeout = 10 * time.Second

// appender is one Append stream. The partitions send on it; one goroutine receives and hands
// every answer to its partition. When the stream breaks the appender's ctx ends, and nothing that
// was sent counts unless it was answered.
type appender struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	stream spillwayv1.BufferService_AppendClient
	buffer string                        // its address
	wants  bool                          // it wants to hear of retention
	owner  *owner                        // who hears what is paused
	opened *spillwayv1.AppendOpened      // the buffer's answer to open
	told   chan struct{}                 // has room for one: owner was told what is paused
	source *source                       // who answers refetches and finds; may be nil
	routes map[topicPartition]*partition // fixed
	done   chan struct{}                 // closed when receive has ended
	wg     sync.WaitGroup                // of the refetches and finds

	sendMu    sync.Mutex
	refetchMu sync.Mutex
	refetches map[uint64]*partition         // by Refetch.id
	newest    map[topicPartition]*partition // of refetches
}

// openAppender opens a stream for a shard with the buffer that has it, and returns when the buffer
// has accepted it. Its owner must close it. Source may be nil.
func openAppender(ctx context.Context, buffer shards.Buffer, open *spillwayv1.AppendOpen, o *owner, s *source, partitions []*partition) (*appender, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &appender{ctx: ctx, cancel: cancel, buffer: buffer.Address, owner: o, told: make(chan struct{}, 1), source: s, routes: make(map[topicPartition]*partition), refetches: make(map[uint64]*partition), newest: make(map[topicPartition]*partition), done: make(chan struct{})}
	for _, p := range partitions {
		a.routes[p.topicPartition] = p
	}
	late := time.AfterFunc(openTimeout, func() { cancel(fmt.Errorf("no answer within %s", openTimeout)) })
	defer late.Stop()
	if err := a.open(buffer.Conn, open); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(err)
		return nil, fmt.Errorf("open append stream to queue %s: %w", open.Queue, rpc.Explain(err, "buffer", a.buffer))
	}
	go a.receive()
	return a, nil
}

func (a *appender) open(conn *grpc.ClientConn, open *spillwayv1.AppendOpen) (err error) {
	if a.stream, err = spillwayv1.NewBufferServiceClient(conn).Append(a.ctx); err != nil {
		return err
	}
	// The reason of a failed Send is what Recv returns.
	_ = a.stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: open}})
	m, err := a.stream.Recv()
	if err != nil {
		return err
	}
	if a.opened = m.GetOpened(); a.opened == nil {
		return fmt.Errorf("the buffer answered %T, want opened", m.Message)
	}
	a.wants = a.opened.WantsRetention
	if err := a.owner.seen.Admit(a.buffer, a.opened.Life, a.opened.Epoch); err != nil {
		return err
	}
	a.owner.heard(a.opened.PausedSources)
	return nil
}

// send may wait: the buffer reads no further while it has no room. An error means that the stream
// is broken; ctx's cause tells why.
func (a *appender) send(m *spillwayv1.AppendRequest) error {
	a.sendMu.Lock()
	defer a.sendMu.Unlock()
	if err := a.stream.Send(m); err != nil {
		<-a.done // it learns the reason
		return context.Cause(a.ctx)
	}
	return nil
}

func (a *appender) receive() {
	defer close(a.done)
	for {
		m, err := a.stream.Recv()
		if err == nil {
			err = a.route(m)
		}
		if err != nil {
			a.cancel(rpc.Explain(err, "buffer", a.buffer))
			return
		}
	}
}

func (a *appender) route(m *spillwayv1.AppendResponse) error {
	var source *spillwayv1.SourcePartition
	switch m := m.Message.(type) {
	case *spillwayv1.AppendResponse_Refetch:
		if a.source != nil {
			a.wg.Go(func() { a.source.refetch(a, m.Refetch) })
		}
		return nil
	case *spillwayv1.AppendResponse_FindOffset:
		if a.source != nil {
			a.wg.Go(func() { a.source.find(a, m.FindOffset) })
		}
		return nil
	case *spillwayv1.AppendResponse_PausedSources:
		a.owner.heard(m.PausedSources.Sources)
		select {
		case a.told <- struct{}{}:
		default:
		}
		return nil
	case *spillwayv1.AppendResponse_Assigned:
		source = m.Assigned.Source
	case *spillwayv1.AppendResponse_Appended:
		if id := m.Appended.RefetchId; id != 0 {
			if p := a.refetchOf(id); p != nil {
				return p.onAppended(m.Appended)
			}
			return nil
		}
		source = m.Appended.Source
	case *spillwayv1.AppendResponse_Safe:
		source = m.Safe.Source
	}
	p := a.routes[topicPartition{source.GetTopic(), int(source.GetPartition())}]
	if p == nil {
		return fmt.Errorf("the buffer sent %T for partition %v, which is not this stream's", m.Message, source)
	}
	switch m := m.Message.(type) {
	case *spillwayv1.AppendResponse_Assigned:
		p.onAssigned(m.Assigned)
	case *spillwayv1.AppendResponse_Appended:
		return p.onAppended(m.Appended)
	case *spillwayv1.AppendResponse_Safe:
		if source.GetIncarnation() == p.life.Load() {
			p.onSafe(m.Safe.Offset)
		}
	}
	return nil
}

// close ends the stream and returns when receive and the refetches have ended.
func (a *appender) close() {
	a.cancel(context.Canceled)
	<-a.done
	a.wg.Wait()
}
