package kafkastore

import (
	"errors"
	"fmt"
)

// Errors of stores. All but ErrFenced need a person.
var (
	// ErrFenced means that another owner has the shard: what this store writes counts for nobody.
	// Only whoever assigns shards makes it owner again.
	ErrFenced = errors.New("another buffer has taken the shard over")
	// ErrReplaced means that a topic is not the one that was opened: it was deleted and created
	// again, or its end was lost in an unclean election.
	ErrReplaced = errors.New("the topic is not the one that was opened")
	// ErrShifted means that the journal is a copy with other offsets: a mirror, or restored.
	ErrShifted = errors.New("the journal is a copy with other offsets")
	// ErrGap means that records of the journal are missing.
	ErrGap = errors.New("records of the journal are missing")
	// ErrIdentity means that the topics are not of this queue, or not initialized.
	ErrIdentity = errors.New("the topics are not of this queue")
	// ErrSettings means that a setting of a topic would lose data.
	ErrSettings = errors.New("a topic has a setting that would lose data")
	// ErrVersion means that a later version of Spillway has written to the journal.
	ErrVersion = errors.New("the journal was written by a later version of Spillway")

	errNoTopic = fmt.Errorf("%w", ErrIdentity) // there is none of that name
	errForeign = fmt.Errorf("%w", ErrIdentity) // they are somebody else's
	errClosed  = errors.New("store is closed")
	// errTrimmed means that a log begins after what was to be read, or ends before it.
	errTrimmed = errors.New("the log does not have it")
)
