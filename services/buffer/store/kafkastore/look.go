package kafkastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// errLook is the error of what only an owner may do.
var errLook = errors.New("the store is only looked at")

// look is a store that is only looked at.
type look struct{}

// Look reads a shard without taking it over from its owner, tells opts.Recover what it has, and
// refuses what Open refuses. The store that it returns can neither be read nor written.
func Look(ctx context.Context, cfg Config, opts queue.StoreOptions) (queue.Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	t := cfg.Topics
	client := t.client()
	defer client.Close()
	wrap := func(err error) error {
		return fmt.Errorf("look at the store of shard %d in %s: %w", cfg.Shard, t.Name, err)
	}
	ids, err := keepTrying(ctx, cfg.Log, "describe the topics", func() (map[string][16]byte, error) {
		ids, err := t.check(ctx, client)
		return ids, final(err)
	})
	if err != nil {
		return nil, wrap(err)
	}
	journal, payload := t.logs(client, ids, cfg.Shard)
	want := Identity{JournalID: idText(ids[t.journal()]), PayloadID: idText(ids[t.payload()])}
	if err := lookAt(ctx, cfg, opts, want, journal, payload); err != nil {
		return nil, wrap(err)
	}
	return look{}, nil
}

// lookAt is Look on logs, which stay open.
func lookAt(ctx context.Context, cfg Config, opts queue.StoreOptions, want Identity, journal, payload partitionLog) error {
	want.Namespace, want.Queue, want.Shard, want.Shards, want.Reader = cfg.Topics.Namespace, cfg.Topics.Queue, cfg.Shard, cfg.Topics.Shards, readerVersion
	s := &Store{cfg: cfg, opts: opts, log: cfg.Log, want: want, payloads: &payloads{log: payload}, owner: owner{journal: journal, log: cfg.Log}}
	for {
		r, err := s.begin(ctx)
		if err == nil {
			var end int64
			if _, end, err = s.bounds(ctx, journal); err == nil {
				err = r.read(ctx, end)
			}
		}
		if errors.Is(err, errTrimmed) {
			continue // by the owner
		}
		if err == nil {
			err = r.check()
		}
		if err != nil {
			return err
		}
		first, _, err := s.bounds(ctx, payload)
		if err != nil {
			return err
		}
		s.payloads.hold(r.placesFrom(first), DefaultSegmentBytes)
		return s.tell(r)
	}
}

// placesFrom are where the batches are whose payloads were not trimmed.
func (r *recovered) placesFrom(first int64) (all []place) {
	for pos, b := range r.batches {
		if b.place.at < first {
			delete(r.batches, pos)
			continue
		}
		all = append(all, b.place)
	}
	return all
}

// Append implements queue.Store.
func (look) Append([]queue.Entry) ([]queue.Ref, error) { return nil, errLook }

// Continue implements queue.Store.
func (look) Continue() (bool, error) { return false, nil }

// Read implements queue.Store.
func (look) Read(queue.Ref) ([]byte, error) { return nil, errLook }

// Release implements queue.Store.
func (look) Release([]queue.Ref) {}

// Stats implements queue.Store.
func (look) Stats() queue.StoreStats { return queue.StoreStats{} }

// Close implements queue.Store.
func (look) Close() error { return nil }
