package queue

import (
	"fmt"
	"slices"
)

// Of a queue whose shards move between buffers, no file counts by itself: the buffers may have
// been started with different ones, and each move would change the subscriptions, give up what the
// other file wanted, and let safe pass it. So the configuration has a number, and the ledger has
// that of the last one that counted. A file with a higher one counts, once; any other only adds
// subscriptions that never existed. What was changed at run time counts until then.

// control is which configuration counts. It is never altered, but replaced.
type control struct {
	Revision int64    `json:"revision"`
	Gone     []string `json:"gone,omitempty"` // subscriptions that were deleted, the newest last
}

// maxGone bounds the names that are remembered of deleted subscriptions.
const maxGone = 1000

// without returns a control that knows that a subscription was deleted.
func (c *control) without(name string) *control {
	if c == nil {
		return nil
	}
	names := append(slices.DeleteFunc(slices.Clone(c.Gone), func(n string) bool { return n == name }), name)
	return &control{c.Revision, names[max(0, len(names)-maxGone):]}
}

// reviseLocked applies that a configuration counts.
func (q *Queue) reviseLocked(revision int64) {
	next := &control{Revision: revision}
	if q.control != nil {
		next.Revision = max(revision, q.control.Revision)
		next.Gone = slices.DeleteFunc(slices.Clone(q.control.Gone), func(name string) bool { return q.subscription(name) != nil })
	}
	q.control = next
}

// HeaderFilter is a condition on a header of the records that a subscription wants. The queue
// keeps it for deliveries.
type HeaderFilter struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
	Except bool     `json:"except,omitempty"` // the header has none of the values, or is not there
}

func (f HeaderFilter) equal(o HeaderFilter) bool {
	return f.Name == o.Name && slices.Equal(f.Values, o.Values) && f.Except == o.Except
}

// Revision returns the revision of the configuration that counts, and false when the queue has
// none: then its file counts whenever it says something else.
func (q *Queue) Revision() (revision int64, numbered bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.cfg.Numbered || q.control == nil {
		return 0, q.cfg.Numbered
	}
	return q.control.Revision, true
}

// countsLocked returns whether a configuration with that revision replaces the one that counts.
func (q *Queue) countsLocked(revision int64) bool {
	return !q.cfg.Numbered || q.control == nil || revision > q.control.Revision
}

// seedLocked brings a subscription that is there in line with the configuration, if that counts.
// A ledger of a version that knew no revisions goes by what that one did.
func (q *Queue) seedLocked(sub *subscription, c *SubscriptionConfig) {
	switch {
	case !q.cfg.Numbered || q.control == nil:
		if sub.seed == nil || !sub.seed.equal(c) {
			known := sub.seed
			if q.cfg.Numbered && known != nil && len(c.Headers) > 0 { // which only the file had
				with := *known
				with.Headers = c.Headers
				known = &with
			}
			if known != nil && known.equal(c) {
				sub.Headers = c.Headers
			} else {
				sub.SubscriptionConfig = *c
			}
			sub.seed = c
		}
	case q.countsLocked(q.cfg.Revision):
		sub.seed, sub.SubscriptionConfig = c, *c
	}
}

// passedOverLocked returns the subscriptions of a configuration that does not count, and says
// something else than the one that does. What was changed at run time is none of it.
func (q *Queue) passedOverLocked(subs []SubscriptionConfig) (names []string) {
	for i := range subs {
		c := subs[i]
		c.OnFull = max(c.OnFull, Block)
		sub := q.subscription(c.Name)
		if sub == nil || !sub.SubscriptionConfig.equal(&c) && (sub.seed == nil || !sub.seed.equal(&c)) {
			names = append(names, c.Name)
		}
	}
	return names
}

// seedControl notes that the configuration counts, or warns that it does not.
func (q *Queue) seedControl() {
	if !q.cfg.Numbered {
		return
	}
	if !q.countsLocked(q.cfg.Revision) {
		if err := q.checkRevisionLocked(q.cfg.Revision, q.configured, q.cfg.Subscriptions); err != nil {
			q.cfg.Log.Warn("what this buffer's configuration says of the queue counts only in part", "error", err)
		}
		return
	}
	if q.control != nil {
		q.cfg.Log.Info("a configuration with a higher revision counts from now on", "revision", q.cfg.Revision, "was", q.control.Revision)
	}
	q.reviseLocked(q.cfg.Revision)
}

// checkRevisionLocked returns an error when a configuration that does not count says something
// else than the one that does.
func (q *Queue) checkRevisionLocked(revision int64, l Limits, subs []SubscriptionConfig) error {
	names := q.passedOverLocked(subs)
	bounds := q.limits != nil && l != q.limits.Limits && l != q.limits.Seed
	if len(names) == 0 && !bounds {
		return nil
	}
	what := fmt.Sprintf("subscriptions %v", names)
	if bounds {
		what += " and the bounds of disk"
	}
	return fmt.Errorf("%w: it says something else of %s, with revision %d, and the queue goes by one with revision %d; to have it count, give the queue a higher revision in the files of all its buffers",
		ErrRevision, what, revision, q.control.Revision)
}
