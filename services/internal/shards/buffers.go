package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

const (
	// askTimeout bounds the wait for a buffer's answer.
	askTimeout = 10 * time.Second
	// lateAfter is how long the others are waited for when one has what is looked for: a machine
	// that is gone answers nothing.
	lateAfter = time.Second
)

// Buffer is a buffer to which there is a connection.
type Buffer struct {
	Address string
	Conn    *grpc.ClientConn // nobody but Buffers may close it
}

// Buffers are all buffers of a pipeline. All methods may be called concurrently.
type Buffers struct{ all []Buffer }

// Dial prepares connections to buffers, which Close ends. It waits for none of them.
func Dial(addresses []string, dial func(address string) (*grpc.ClientConn, error)) (*Buffers, error) {
	if len(addresses) == 0 {
		return nil, errors.New("no buffer address is configured")
	}
	b := &Buffers{}
	for _, address := range addresses {
		conn, err := dial(address)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect to the buffer at %s: %w", address, err), b.Close())
		}
		b.all = append(b.all, Buffer{address, conn})
	}
	return b, nil
}

// Close ends the connections.
func (b *Buffers) Close() error {
	var errs []error
	for _, buffer := range b.all {
		if err := buffer.Conn.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close connection to the buffer at %s: %w", buffer.Address, err))
		}
	}
	return errors.Join(errs...)
}

// Shards returns how many shards a queue has, as the buffers that can be reached say.
func (b *Buffers) Shards(ctx context.Context, queue string) (int, error) {
	found, err := b.look(ctx, queue, func(*spillwayv1.Shard) bool { return true })
	if err != nil {
		return 0, err
	}
	for shard := range found.shards {
		if _, err := found.owner(&Seen{Queue: queue, Number: shard, Of: found.shards}); err != nil {
			return 0, err
		}
	}
	return found.shards, nil
}

// Owner returns the buffer that has a shard. A buffer that has other data than those that were
// seen is not the owner: it is refused, and named.
func (b *Buffers) Owner(ctx context.Context, of *Seen) (Buffer, error) {
	if of.Of == 1 && len(b.all) == 1 {
		return b.all[0], nil // else it says so when a stream is opened
	}
	found, err := b.look(ctx, of.Queue, func(s *spillwayv1.Shard) bool { return int(s.Number) == of.Number && s.Life != "" })
	if err != nil {
		return Buffer{}, err
	}
	if found.shards != of.Of {
		return Buffer{}, fmt.Errorf("queue %s had %d shards and has %d now: restart this process", of.Queue, of.Of, found.shards)
	}
	owner, err := found.owner(of)
	switch {
	case err != nil:
		return Buffer{}, err
	case owner == nil:
		return Buffer{}, inLine(fmt.Errorf("no buffer has shard %d of %d of queue %s", of.Number, of.Of, of.Queue), found.failed)
	}
	return owner.buffer, nil
}

// claim is a buffer's word that it has a shard.
type claim struct {
	buffer Buffer
	shard  *spillwayv1.Shard
}

// claims are those of a queue's shards.
type claims struct {
	shards int
	of     map[int][]claim
	failed error // why some buffers did not answer
}

// owner returns whose claim to a shard counts, nil when there is none, and an error when nobody
// can tell. Of buffers with different data it is the one with those that were seen before, or else
// the one where they were seen, which has lost its disk.
func (c *claims) owner(of *Seen) (*claim, error) {
	all := c.of[of.Number]
	chosen := -1
	for i := range all {
		theData, thePlace := of.knows(all[i].buffer.Address, all[i].shard)
		if theData || thePlace && chosen < 0 {
			chosen = i
		}
	}
	if chosen >= 0 {
		for i := range all {
			if i != chosen {
				of.refuse(all[i].buffer.Address, all[i].shard)
			}
		}
		return &all[chosen], nil
	}
	var owner *claim
	for i := range all {
		one := &all[i]
		if owner == nil {
			owner = one
			continue
		}
		later, known := laterOwner(owner.shard, one.shard)
		if !known {
			return nil, fmt.Errorf("the buffers at %s and at %s both have shard %d of queue %s: give each buffer.shard of its own, and name each once in buffers",
				owner.buffer.Address, one.buffer.Address, of.Number, of.Queue)
		}
		if later == one.shard {
			owner = one
		}
	}
	if owner == nil {
		return nil, nil
	}
	of.mu.Lock()
	defer of.mu.Unlock()
	return owner, of.strangerLocked(owner.buffer.Address, owner.shard.Life, owner.shard.Epoch)
}

// look asks all buffers. It does not wait for those that are late when one has told enough. An
// error says that none of them knows the queue.
func (b *Buffers) look(ctx context.Context, queue string, enough func(*spillwayv1.Shard) bool) (*claims, error) {
	answers, errs := b.askAll(ctx, queue, enough)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found := &claims{of: make(map[int][]claim), failed: inLine(errs...)}
	var first Buffer // that has told how many shards there are
	for i, shards := range answers {
		for _, s := range shards {
			n, buffer := int(s.Number), b.all[i]
			if s.Of < 1 || s.Number < 0 || s.Number >= s.Of || s.Of > Max {
				return nil, fmt.Errorf("the buffer at %s says that it has shard %d of %d of queue %s, which cannot be", buffer.Address, s.Number, s.Of, queue)
			}
			if first.Conn != nil && found.shards != int(s.Of) {
				return nil, fmt.Errorf("queue %s has %d shards at the buffer at %s, and %d at the one at %s: give it the same number in the files of all buffers",
					queue, found.shards, first.Address, s.Of, buffer.Address)
			}
			first, found.shards = buffer, int(s.Of)
			found.of[n] = append(found.of[n], claim{buffer, s})
		}
	}
	if first.Conn == nil {
		if found.failed != nil {
			return nil, found.failed
		}
		return nil, fmt.Errorf("no buffer has queue %s; asked %s", queue, strings.Join(b.addresses(), ", "))
	}
	return found, nil
}

// askAll asks all buffers for their shards of a queue.
func (b *Buffers) askAll(ctx context.Context, queue string, enough func(*spillwayv1.Shard) bool) ([][]*spillwayv1.Shard, []error) {
	type answer struct {
		buffer int
		shards []*spillwayv1.Shard
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	came := make(chan answer, len(b.all))
	answers, errs := make([][]*spillwayv1.Shard, len(b.all)), make([]error, len(b.all))
	for i, buffer := range b.all {
		errs[i] = fmt.Errorf("the buffer at %s has not answered", buffer.Address)
		go func() {
			shards, err := b.ask(ctx, buffer, queue)
			came <- answer{i, shards, err}
		}()
	}
	var late <-chan time.Time
	for range b.all {
		select {
		case a := <-came:
			answers[a.buffer], errs[a.buffer] = a.shards, a.err
			if late == nil && slices.ContainsFunc(a.shards, enough) {
				timer := time.NewTimer(lateAfter)
				defer timer.Stop()
				late = timer.C
			}
		case <-late:
			return answers, errs
		}
	}
	return answers, errs
}

// laterOwner returns which of two buffers has a shard of a queue that is kept in Kafka, where one
// takes it over from another, which may not know yet. Otherwise nothing is known: a shard is in
// two places by mistake.
func laterOwner(a, b *spillwayv1.Shard) (later *spillwayv1.Shard, known bool) {
	switch {
	case a.Epoch == b.Epoch:
		return nil, false // in data directories, where it is always 0, or neither has opened it yet
	case a.Life == "" && b.Life != "":
		return b, true // it is open there
	case b.Life == "" && a.Life != "":
		return a, true
	case a.Life != b.Life:
		return nil, false
	case a.Epoch > b.Epoch:
		return a, true
	}
	return b, true
}

// inLine joins errors for a line of a log.
func inLine(errs ...error) (all error) {
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

func (b *Buffers) addresses() []string {
	var all []string
	for _, buffer := range b.all {
		all = append(all, buffer.Address)
	}
	return all
}

// ask asks one buffer for its shards of a queue. One of a version before shards has all of it.
func (b *Buffers) ask(ctx context.Context, buffer Buffer, queue string) ([]*spillwayv1.Shard, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := spillwayv1.NewClusterServiceClient(buffer.Conn).ListShards(ctx, &spillwayv1.ListShardsRequest{Queue: queue, PageSize: Max})
	// A guard of that version refuses calls that it does not know.
	before := status.Code(err) == codes.Unimplemented || rpc.Reason(err) == "NO_SUCH_RULE"
	switch {
	case before && len(b.all) == 1:
		return []*spillwayv1.Shard{{Queue: queue, Of: 1}}, nil
	case before:
		return nil, fmt.Errorf("the buffer at %s is of a version without shards, and there are several buffers: upgrade it", buffer.Address)
	case err != nil:
		return nil, rpc.Explain(err, "buffer", buffer.Address)
	}
	return slices.DeleteFunc(r.Shards, func(s *spillwayv1.Shard) bool { return s.Queue != queue }), nil
}
