package queue

import "errors"

var (
	// ErrClosed means that the queue drained or its store failed. What was not answered is
	// unknown.
	ErrClosed = errors.New("queue is closed")
	// ErrGap means that a range begins above what is held or settled of its partition.
	ErrGap = errors.New("range leaves a gap behind the appended offset")
	// ErrFull means that a bound of the queue or of a subscription that blocks is reached.
	ErrFull = errors.New("queue is full")
	// ErrAhead means that a batch is to come again later: its partition is ahead of all
	// deliveries, and as much is held back already as may be.
	ErrAhead = errors.New("the partition is ahead of the deliveries")
	// ErrNoSpace is wrapped by Store.Append when the file system is full: nothing of the group was
	// written, and the store goes on.
	ErrNoSpace = errors.New("no space left for the store")
	// ErrNoIngest means that no ingest of a cluster is connected.
	ErrNoIngest = errors.New("no ingest is connected")
	// ErrGone means that Kafka has no such topic, or no such partition of it.
	ErrGone = errors.New("it is in Kafka no more")
	// ErrNoAnswer means that an ingest cannot find out what it was asked.
	ErrNoAnswer = errors.New("the ingest cannot find out")
	// ErrExists means that there is a subscription of that name already.
	ErrExists = errors.New("subscription exists")
	// ErrConfigured means that the configuration names the subscription.
	ErrConfigured = errors.New("subscription is in the configuration")
	// ErrRevision means that a configuration of a Numbered queue does not count.
	ErrRevision = errors.New("another configuration of the queue counts")
	// ErrTooMany means that a bound of what a queue or a stream keeps of names and numbers is
	// reached.
	ErrTooMany = errors.New("too many")
	// ErrReplaying is a replay that is asked for while another one is under way.
	ErrReplaying = errors.New("a replay of the subscription is under way")
	// ErrNoReplay means that the subscription has no replay that is under way.
	ErrNoReplay = errors.New("no replay is under way")
	// ErrNoUndelivered means that none of the ranges that were not delivered was chosen.
	ErrNoUndelivered = errors.New("nothing was chosen")
	// ErrNoCopy means that the record of a dead letter was not kept.
	ErrNoCopy = errors.New("there is no copy")
	// ErrInUse means that deliveries hang on what is to be destroyed.
	ErrInUse = errors.New("in use")
	// ErrInvalid is wrapped by refusals of what can never be right.
	ErrInvalid = errors.New("invalid")
	// ErrNoSubscription means that the queue has no subscription of that name.
	ErrNoSubscription = errors.New("no such subscription")
	// ErrNoState means that there is no entry of sink state with that key.
	ErrNoState = errors.New("no such entry of sink state")
	// ErrStateForgotten is why a session ended of whose sink state an operator had an entry
	// forgotten.
	ErrStateForgotten = errors.New("an operator had an entry of the session's sink state forgotten")
	// ErrNoSource means that no ingest has told of a source of that name.
	ErrNoSource = errors.New("no such source")
	// ErrOtherShard means that data is of another part of a queue than what is configured.
	ErrOtherShard = errors.New("the data is of another shard")
	// ErrMoved means that the data is being moved to another store, or was.
	ErrMoved = errors.New("the data is in another place")
	// ErrNoSession means that the session is dead.
	ErrNoSession = errors.New("no such session")
	// ErrLeaseGone means that a lease of an ack is not held: the whole ack is refused.
	ErrLeaseGone = errors.New("lease is not held")
)
