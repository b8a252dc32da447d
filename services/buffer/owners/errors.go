package owners

import "errors"

var (
	// ErrFenced is for Serve to wrap: another buffer has taken the shard. The member joins again
	// at once, without the shard, and only a later generation of the group gives it back.
	ErrFenced = errors.New("another buffer has taken the shard")
	// ErrMoved is the cause with which the context of Serve ends when the shard goes to another
	// buffer, or the member leaves.
	ErrMoved = errors.New("the shard goes to another buffer")
	// ErrSilent is the cause with which the context of Serve ends when Kafka has not answered for
	// so long that others have the shard by now.
	ErrSilent = errors.New("the group has not been heard of for too long")
	// ErrAdvertise means that the address that this buffer advertises does not lead to it.
	ErrAdvertise = errors.New("the address that this buffer advertises does not lead to it")
	// ErrRefused means that the group's leader gives this buffer nothing.
	ErrRefused = errors.New("the group gives this buffer no shard")
	// ErrNoMember means that no buffer of the group has an address.
	ErrNoMember = errors.New("no buffer of the group has this address")
	// ErrNoRoom means that no other buffer may have what this one would give up.
	ErrNoRoom = errors.New("no other buffer of the group has room for it")
	// ErrNotHere means that the shard is not at this buffer.
	ErrNotHere = errors.New("the shard is not at this buffer")
)
