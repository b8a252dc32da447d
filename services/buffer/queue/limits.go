package queue

import "context"

// Limits are the bounds of what a queue keeps on disk. They may change while it runs.
type Limits struct {
	DiskRecords int64 `json:"records"` // pending
	DiskBytes   int64 `json:"bytes"`   // of all files of the store
}

// limitsChange sets Limits at run time. It counts as long as the configuration says what it said
// then, as a change of a subscription does.
type limitsChange struct {
	Limits
	Seed Limits `json:"seed"` // what the configuration said
}

// Limits returns the bounds that hold now, and those of the configuration.
func (q *Queue) Limits() (now, configured Limits) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.limitsLocked(), q.configured
}

func (q *Queue) limitsLocked() Limits { return Limits{q.cfg.DiskRecords, q.cfg.DiskBytes} }

// SetLimits changes the bounds at once, also while the queue is full, and returns when that is
// durable. They hold over restarts until the configuration says something else than it does now.
func (q *Queue) SetLimits(ctx context.Context, alter func(*Limits) error) error {
	return q.manage(ctx, func() (*change, error) {
		l := q.limitsLocked()
		if err := alter(&l); err != nil {
			return nil, err
		}
		return &change{Limits: &limitsChange{l, q.configured}}, nil
	})
}

// Configure brings bounds and subscriptions in line with a configuration that is read while the
// queue runs, and returns when that is durable. What was set at run time of something that the
// configuration says otherwise than before counts no more. Subscriptions that are not there are
// passed over.
//
// Of a Numbered queue, a configuration with a higher revision counts as a whole, and any other
// that says something else fails with ErrRevision.
func (q *Queue) Configure(ctx context.Context, revision int64, l Limits, subs []SubscriptionConfig) error {
	higher := false
	err := q.manage(ctx, func() (*change, error) {
		if q.cfg.Numbered {
			if higher = q.countsLocked(revision); !higher {
				return &change{}, q.checkRevisionLocked(revision, l, subs)
			}
		} else if l == q.configured {
			return &change{}, nil
		}
		q.configured = l
		return &change{Limits: &limitsChange{l, l}}, nil
	})
	if q.cfg.Numbered && !higher {
		return err
	}
	for _, c := range subs {
		if err != nil {
			return err
		}
		c.OnFull = max(c.OnFull, Block)
		q.mu.Lock()
		sub := q.subscription(c.Name)
		same := sub == nil || !higher && sub.seed != nil && sub.seed.equal(&c)
		q.mu.Unlock()
		if !same {
			err = q.update(ctx, c.Name, true, func(x *SubscriptionConfig) { *x = c })
		}
	}
	if !higher || err != nil { // a crash before what follows has it all done again
		return err
	}
	return q.manage(ctx, func() (*change, error) {
		q.cfg.Revision = max(q.cfg.Revision, revision)
		return &change{Revision: &revision}, nil
	})
}

// setLimitsLocked applies a change of the bounds. While the queue is being opened, what counts is
// decided by seedLimits.
func (q *Queue) setLimitsLocked(c *limitsChange) {
	q.limits = c
	if q.store != nil {
		q.cfg.DiskRecords, q.cfg.DiskBytes = c.DiskRecords, c.DiskBytes
	}
}

// seedLimits brings the recovered bounds in line with the configuration.
func (q *Queue) seedLimits() {
	numbered := q.cfg.Numbered && q.control != nil
	if q.limits == nil || numbered && q.countsLocked(q.cfg.Revision) {
		q.limits = nil
		if q.cfg.Numbered {
			q.limits = &limitsChange{q.configured, q.configured}
		}
		return
	}
	if !numbered && q.limits.Seed != q.configured {
		q.cfg.Log.Info("the configuration says something else of disk.bytes or disk.records than before; what was set at run time counts no more",
			"disk_bytes", q.configured.DiskBytes, "was", q.limits.DiskBytes, "disk_records", q.configured.DiskRecords, "records_were", q.limits.DiskRecords)
		if q.limits = nil; q.cfg.Numbered {
			q.limits = &limitsChange{q.configured, q.configured}
		}
		return
	}
	q.cfg.DiskRecords, q.cfg.DiskBytes = q.limits.DiskRecords, q.limits.DiskBytes
}
