package queue

import "errors"

var (
	// ErrClosed means that the queue drained or its store failed. What was not answered is unknown.
	ErrClosed = errors.New("queue is closed")
	// ErrGap means that a range begins above what is held or settled of its partition.
	ErrGap = errors.New("range leaves a gap behind the appended offset")
	// ErrFull means that a bound of the queue or of a subscription that blocks is reached.
	ErrFull = errors.New("queue is full")
	// ErrNoSpace is wrapped by Store.Append when the file system is full: nothing of the group was
	// written, and the store goes on.
	ErrNoSpace = errors.New("no space left for the store")
	// ErrNoIngest means that no ingest of a cluster is connected.
	ErrNoIngest = errors.New("no ingest is connected")
	// ErrExists means that there is a subscription of that name already.
	ErrExists = errors.New("subscription exists")
	// ErrConfigured means that the configuration names the subscription.
	ErrConfigured = errors.New("subscription is in the configuration")
	// ErrInvalid is wrapped by refusals of what can never be right.
	ErrInvalid = errors.New("invalid")
	// ErrNoSubscription means that the queue has no subscription of that name.
	ErrNoSubscription = errors.New("no such subscription")
	// ErrNoSource means that no ingest has told of a source of that name.
	ErrNoSource = errors.New("no such source")
	// ErrNoSession means that the session is dead.
	ErrNoSession = errors.New("no such session")
	// ErrLeaseGone means that a lease of an ack is not held: the whole ack is refused.
	ErrLeaseGone = errors.New("lease is not held")
)
