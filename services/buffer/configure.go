package buffer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/config"
)

// configured is what may change of a queue while it runs: the bounds of its disk, and its
// subscriptions by name.
func configured(q *config.Queue) (queue.Limits, []queue.SubscriptionConfig) {
	var subs []queue.SubscriptionConfig
	for _, name := range slices.Sorted(maps.Keys(q.Subscriptions)) {
		c := q.Subscriptions[name]
		s := queue.SubscriptionConfig{Name: name, Topics: c.Topics, Required: c.Required, OnFull: onFull[c.OnFull], Limit: int64(c.Limit)}
		if q.Store.Kafka != nil {
			s.Headers = headerFilters(c)
		}
		subs = append(subs, s)
	}
	return queue.Limits{DiskRecords: q.Disk.Records, DiskBytes: int64(q.Disk.Bytes)}, subs
}

// Configure brings the disk bounds of queues, and topics, required, on_full and limit of their
// subscriptions, in line with a configuration that was read while the service runs. It returns
// when that is durable; a queue that is not open now has it when it is opened. Queues and
// subscriptions that are new in it, and those that it lacks, are left for a restart. Of a queue
// that is kept in Kafka it must have a higher revision than the one that counts.
func (s *Service) Configure(ctx context.Context, cfg config.Buffer) error {
	var failed []error
	for _, name := range s.names() {
		q := cfg.Queues[name]
		if q == nil {
			continue
		}
		m := s.queues[name]
		limits, subs := configured(q)
		subs = slices.DeleteFunc(subs, func(c queue.SubscriptionConfig) bool { return !m.has(c.Name) })
		m.mu.Lock()
		m.cfg.DiskRecords, m.cfg.DiskBytes, m.cfg.Revision = limits.DiskRecords, limits.DiskBytes, q.Revision
		m.cfg.Subscriptions = append(subs, slices.DeleteFunc(slices.Clone(m.cfg.Subscriptions), func(c queue.SubscriptionConfig) bool { return q.Subscriptions[c.Name] != nil })...)
		m.mu.Unlock()
		for _, open := range m.open() {
			if err := open.Configure(ctx, q.Revision, limits, subs); err != nil {
				failed = append(failed, fmt.Errorf("queue %s: %w", name, err))
			}
		}
	}
	return errors.Join(failed...)
}

// has says whether the queue was started with a subscription of that name in its configuration.
func (m *managedQueue) has(subscription string) bool {
	return slices.ContainsFunc(m.subscriptions(), func(c queue.SubscriptionConfig) bool { return c.Name == subscription })
}

// subscriptions are those of the configuration.
func (m *managedQueue) subscriptions() []queue.SubscriptionConfig {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg.Subscriptions
}
