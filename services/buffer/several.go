package buffer

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// What is asked of a queue is asked of all of its shards that are here, as clients ask all
// buffers: lists follow each other by shard, numbers are added up (shards.AddQueue), and what one
// shard lacks counts only when all lack it.

// each calls f for one shard after the other. It leaves out those whose error is one of elsewhere,
// unless all are: then the first of elsewhere counts that one has. It goes on after a failure, and
// says which shards failed.
func each(all []openShard, f func(openShard) error, elsewhere ...error) error {
	if len(all) == 1 {
		return f(all[0])
	}
	var failed []error
	var strange error
	n, told := 0, len(elsewhere)
	for _, o := range all {
		err := f(o)
		at := slices.IndexFunc(elsewhere, func(e error) bool { return errors.Is(err, e) })
		switch {
		case err == nil:
		case at >= 0:
			n++
			if at < told {
				strange, told = err, at
			}
		default:
			failed = append(failed, fmt.Errorf("shard %d: %w", o.number, err))
		}
	}
	if n == len(all) {
		return strange
	}
	return errors.Join(failed...)
}

// inShard is something of a shard.
type inShard[V any] struct {
	shard int
	of    V
}

// across yields what is behind a position, of one shard after the other.
func across[V any](all []openShard, from position, list func(o openShard, from position) (iter.Seq[V], error)) (iter.Seq[inShard[V]], error) {
	type part struct {
		shard int
		items iter.Seq[V]
	}
	var parts []part
	for _, o := range all {
		at := from
		switch {
		case o.number < from.Shard:
			continue
		case o.number > from.Shard:
			at = position{}
		}
		items, err := list(o, at)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{o.number, items})
	}
	return func(yield func(inShard[V]) bool) {
		for _, p := range parts {
			for v := range p.items {
				if !yield(inShard[V]{p.shard, v}) {
					return
				}
			}
		}
	}, nil
}

// with are the shards that have a subscription, and what it is there. There is at least one.
func with(all []openShard, sub string) (having []openShard, views []queue.SubscriptionView, err error) {
	err = each(all, func(o openShard) error {
		v, err := o.Subscription(sub)
		if err == nil {
			having, views = append(having, o), append(views, v)
		}
		return err
	}, queue.ErrNoSubscription)
	return having, views, err
}
