package kafkastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spillwayio/spillway/services/internal/backoff"
)

const (
	retryMin, retryMax = 5 * time.Millisecond, 5 * time.Second
	// patience is for how long a log may fail before a line in the log says so.
	patience = 5 * time.Second
)

// owner writes frames to a journal, one at a time, and notices when somebody else has taken it
// over.
type owner struct {
	journal partitionLog
	log     *slog.Logger

	epoch  int64
	nonce  uint64
	number uint64 // of the next frame
	next   int64  // the offset that the next record gets if nobody else writes
}

// barrier is the value of a barrierFrame.
type barrier struct {
	Life    string `json:"life"`    // Identity.Life
	Shard   int    `json:"shard"`   // its partition
	Address string `json:"address"` // of the owner, for people
	// Instance is Config.Instance.
	Instance string `json:"instance,omitempty"`
	Reader   int    `json:"reader"` // the version that readers of what follows must know at least
}

// takeOver makes this the owner: it writes a barrier, behind which nobody else's frames count.
func (o *owner) takeOver(ctx context.Context, b barrier) error {
	value, err := json.Marshal(b)
	if err != nil {
		return err
	}
	f := frame{kind: barrierFrame, epoch: -1, nonce: o.nonce, value: value}
	at, err := keepTrying(ctx, o.log, "write a barrier", func() (int64, error) { return o.journal.produce(ctx, []record{{f.key(), f.value}}) })
	if err != nil {
		return fmt.Errorf("write a barrier: %w", err)
	}
	o.epoch, o.number, o.next = at, 0, at+1
	return nil
}

// put makes a frame durable and returns its offset. It sends the same bytes until they are
// answered, however long that takes. After an error the frame may count or not, and the owner is
// none any more.
func (o *owner) put(ctx context.Context, kind, flags byte, value []byte) (int64, error) {
	f := frame{kind: kind, flags: flags, epoch: o.epoch, nonce: o.nonce, number: o.number, value: value}
	at, err := keepTrying(ctx, o.log, "write to the journal", func() (int64, error) { return o.journal.produce(ctx, []record{{f.key(), value}}) })
	if err != nil {
		return 0, err
	}
	if at < o.next {
		return 0, fmt.Errorf("%w: the record was stored at offset %d, before %d, which is written already", ErrReplaced, at, o.next)
	}
	first := at
	if at > o.next {
		if first, err = o.lookBack(ctx, &f, at); err != nil {
			return 0, err
		}
	}
	o.next, o.number = at+1, o.number+1
	return first, nil
}

// lookBack reads what others wrote between the owner's last frame and the answer for f, and
// returns where f is: an earlier copy counts in place of the one that was answered. It reads that
// last frame, too: when it is there no more, the log has lost its end, and others have filled the
// place.
func (o *owner) lookBack(ctx context.Context, f *frame, at int64) (first int64, err error) {
	first = at
	for from := o.next - 1; from < at; {
		next, err := keepTrying(ctx, o.log, "read the journal", func() (int64, error) {
			return o.journal.read(ctx, from, func(offset int64, r record) error {
				if offset >= at {
					return nil
				}
				got, err := parseFrame(r.key, r.value)
				switch {
				case offset < o.next:
					if offset == o.next-1 && !(err == nil && o.wrote(&got)) {
						return fmt.Errorf("%w: what was stored at offset %d is there no more", ErrReplaced, offset)
					}
				case errors.Is(err, ErrVersion):
					return fmt.Errorf("%w: %w", ErrFenced, err)
				case err != nil:
				case got.kind == barrierFrame:
					return fmt.Errorf("%w: its barrier is at offset %d, and this store's last record would be at %d", ErrFenced, offset, at)
				case got.epoch == f.epoch && got.nonce == f.nonce && got.number == f.number:
					first = min(first, offset)
				}
				return nil
			})
		})
		if errors.Is(err, errTrimmed) { // which only an owner does
			return 0, fmt.Errorf("%w, and has trimmed the journal", ErrFenced)
		}
		if err != nil {
			return 0, err
		}
		from = next
	}
	return first, nil
}

// wrote says whether a frame is the owner's last.
func (o *owner) wrote(f *frame) bool {
	if o.number == 0 {
		return f.kind == barrierFrame && f.nonce == o.nonce
	}
	return f.kind != barrierFrame && f.epoch == o.epoch && f.nonce == o.nonce && f.number == o.number-1
}

// keepTrying calls do until it succeeds, fails for good, or ctx ends.
func keepTrying[T any](ctx context.Context, log *slog.Logger, what string, do func() (T, error)) (T, error) {
	wait := backoff.Backoff{Initial: retryMin, Max: retryMax}
	began, told := time.Now(), false
	for {
		v, err := do()
		if err == nil {
			if told {
				log.Info("recovered: the store's Kafka answers again", "after", time.Since(began).Round(time.Millisecond))
			}
			return v, nil
		}
		if ctx.Err() != nil {
			return v, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		for _, final := range []error{errDefinite, errRecord, errTrimmed, ErrReplaced, ErrFenced, ErrShifted, ErrGap, ErrVersion, ErrIdentity, errEntry} {
			if errors.Is(err, final) {
				return v, err
			}
		}
		if !told && time.Since(began) > patience {
			told = true
			log.Warn("the store's Kafka does not do what it is asked to; acks and safe offsets wait, and it is tried again", "to", what, "error", err)
		}
		if wait.Wait(ctx) != nil {
			return v, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
