package buffer

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// fullRetry is when an ingest is asked to try again after the queue was full.
const fullRetry = 500 * time.Millisecond

// statusTable says which gRPC code and which stable reason an error of the queue has. The first match counts.
var statusTable = []struct {
	err    error
	code   codes.Code
	reason string
	retry  time.Duration
}{
	{context.Canceled, codes.Canceled, "CANCELED", 0},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED", 0},
	{queue.ErrFull, codes.ResourceExhausted, "QUEUE_FULL", fullRetry},
	{queue.ErrGap, codes.FailedPrecondition, "SOURCE_GAP", 0},
	{queue.ErrLeaseGone, codes.FailedPrecondition, "LEASE_NOT_HELD", 0},
	{queue.ErrNoSession, codes.FailedPrecondition, "SESSION_DEAD", 0},
	{queue.ErrNoSubscription, codes.NotFound, "SUBSCRIPTION_NOT_FOUND", 0},
	{queue.ErrNoSource, codes.NotFound, "SOURCE_NOT_FOUND", 0},
	{errNoQueue, codes.NotFound, "QUEUE_NOT_FOUND", 0},
	{queue.ErrNoIngest, codes.Unavailable, "NO_INGEST", time.Second},
	{queue.ErrExists, codes.AlreadyExists, "SUBSCRIPTION_EXISTS", 0},
	{queue.ErrConfigured, codes.FailedPrecondition, "SUBSCRIPTION_CONFIGURED", 0},
	{queue.ErrInvalid, codes.InvalidArgument, "MALFORMED", 0},
	{errChecksum, codes.DataLoss, "CHECKSUM_MISMATCH", 0},
	{queue.ErrDamaged, codes.DataLoss, "STORED_BYTES_DAMAGED", 0},
	{queue.ErrClosed, codes.Unavailable, "QUEUE_CLOSED", time.Second},
	{errRecovering, codes.Unavailable, "QUEUE_RECOVERING", time.Second},
}

var (
	errNoQueue    = errors.New("no such queue")
	errChecksum   = errors.New("payload does not match its checksum")
	errRecovering = errors.New("queue is being recovered")
)

// toStatus turns an error of the queue into one of gRPC.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, s := range statusTable {
		if errors.Is(err, s.err) {
			return rpc.Error(s.code, s.reason, s.retry, "%v", err)
		}
	}
	return rpc.Error(codes.Internal, "INTERNAL", 0, "%v", err)
}
