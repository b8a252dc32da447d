package buffer

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spillwayio/spillway/services/buffer/owners"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// fullRetry is when an ingest is asked to try again after the queue was full.
const fullRetry = 500 * time.Millisecond

// aheadRetry is when an ingest is asked to send a batch again whose partition is ahead.
const aheadRetry = 250 * time.Millisecond

// statusTable says which gRPC code and which stable reason an error of the queue has. The first
// match counts.
var statusTable = []struct {
	err    error
	code   codes.Code
	reason string
	retry  time.Duration
}{
	{context.Canceled, codes.Canceled, "CANCELED", 0},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED", 0},
	{queue.ErrFull, codes.ResourceExhausted, "QUEUE_FULL", fullRetry},
	{queue.ErrAhead, codes.ResourceExhausted, "AHEAD", aheadRetry},
	{queue.ErrTooMany, codes.ResourceExhausted, "TOO_MANY", 10 * time.Second},
	{errStalled, codes.ResourceExhausted, "NOT_READING", 0},
	{queue.ErrGap, codes.FailedPrecondition, "SOURCE_GAP", 0},
	{queue.ErrLeaseGone, codes.FailedPrecondition, "LEASE_NOT_HELD", 0},
	{errOutdated, codes.FailedPrecondition, "OUTDATED_DELIVERY", 0},
	{queue.ErrNoSession, codes.FailedPrecondition, "SESSION_DEAD", 0},
	{queue.ErrNoSubscription, codes.NotFound, "SUBSCRIPTION_NOT_FOUND", 0},
	{queue.ErrNoState, codes.NotFound, "SINK_STATE_NOT_FOUND", 0},
	{queue.ErrStateForgotten, codes.Unavailable, "SINK_STATE_FORGOTTEN", time.Second},
	{queue.ErrNoSource, codes.NotFound, "SOURCE_NOT_FOUND", 0},
	{errNotOwner, codes.Unavailable, "NOT_OWNER", time.Second},
	{owners.ErrNotHere, codes.Unavailable, "NOT_OWNER", time.Second},
	{owners.ErrNoMember, codes.InvalidArgument, "NO_SUCH_BUFFER", 0},
	{owners.ErrNoRoom, codes.FailedPrecondition, "NO_ROOM", 0},
	{errFixedOwners, codes.FailedPrecondition, "FIXED_OWNERS", 0},
	{errShardsDiffer, codes.FailedPrecondition, "SHARDS_DIFFER", 0},
	{errNoQueue, codes.NotFound, "QUEUE_NOT_FOUND", 0},
	{queue.ErrNoIngest, codes.Unavailable, "NO_INGEST", time.Second},
	{queue.ErrNoAnswer, codes.Unavailable, "NOT_FOUND_OUT", time.Second},
	{queue.ErrGone, codes.FailedPrecondition, "TOPIC_GONE", 0},
	{queue.ErrExists, codes.AlreadyExists, "SUBSCRIPTION_EXISTS", 0},
	{queue.ErrConfigured, codes.FailedPrecondition, "SUBSCRIPTION_CONFIGURED", 0},
	{queue.ErrRevision, codes.FailedPrecondition, "REVISION", 0},
	{queue.ErrReplaying, codes.FailedPrecondition, "REPLAYING", 0},
	{queue.ErrNoReplay, codes.FailedPrecondition, "NO_REPLAY", 0},
	{queue.ErrNoUndelivered, codes.NotFound, "NOTHING_CHOSEN", 0},
	{queue.ErrNoCopy, codes.NotFound, "NO_COPY", 0},
	{queue.ErrInUse, codes.FailedPrecondition, "IN_USE", 0},
	{queue.ErrInvalid, codes.InvalidArgument, "MALFORMED", 0},
	{errChecksum, codes.DataLoss, "CHECKSUM_MISMATCH", 0},
	{queue.ErrDamaged, codes.DataLoss, "STORED_BYTES_DAMAGED", 0},
	{queue.ErrClosed, codes.Unavailable, "QUEUE_CLOSED", time.Second},
	{errRecovering, codes.Unavailable, "QUEUE_RECOVERING", time.Second},
}

var (
	errNoQueue      = errors.New("no such queue")
	errChecksum     = errors.New("payload does not match its checksum")
	errRecovering   = errors.New("queue is being recovered")
	errNotOwner     = errors.New("this buffer does not have the shard")
	errFixedOwners  = errors.New("the owners of the shards are fixed by the configuration (store.kafka.owners)")
	errShardsDiffer = errors.New("the numbers of shards differ")
	errOutdated     = errors.New("the delivery is too old for its subscription")
)

// maxMessageBytes bounds the text of an error.
const maxMessageBytes = 4 << 10

// toStatus turns an error of the queue into one of gRPC.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, s := range statusTable {
		if errors.Is(err, s.err) {
			return rpc.Error(s.code, s.reason, s.retry, "%.*v", maxMessageBytes, err)
		}
	}
	return rpc.Error(codes.Internal, "INTERNAL", 0, "%.*v", maxMessageBytes, err)
}
