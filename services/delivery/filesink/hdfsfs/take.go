package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

const (
	// settleFor is how long after its writer's end a file is recovered at the earliest. A
	// DataNode that is interrupted between the data and the length of a packet fails every
	// recovery until it is started again.
	settleFor = 2 * time.Second
)

// Take implements filesink.FS. The rename does not shut out a writer, since the NameNode goes by
// the file's id; recoverLease does. Each call has a client name of its own.
func (f *FS) Take(ctx context.Context, t filesink.Taking) error {
	return f.with(ctx, operationTimeout, func(ctx context.Context, c *client) error {
		if err := f.take(ctx, c, t, newName()); err != nil {
			return fmt.Errorf("take %s: %w", t.From, placeErr(err))
		}
		return nil
	})
}

func (f *FS) take(ctx context.Context, c *client, t filesink.Taking, holder string) error {
	s, err := c.locate(t.Alias)
	if errors.Is(err, os.ErrNotExist) {
		if err = c.rename(t.From, t.Alias, false); err == nil {
			failpoint.At(failpoint.FSRenamed)
			s, err = c.locate(t.Alias)
		}
	}
	if err != nil {
		return err
	}
	if !s.open {
		f.recoveries.ended(t.Alias)
	} else {
		if err := f.recover(c, t, s, holder); err != nil {
			return err
		}
		if s, err = c.locate(t.Alias); err != nil {
			return err
		}
	}
	failpoint.At(failpoint.FSRecovered)
	switch {
	case s.open:
		return fmt.Errorf("%w: %v is still being recovered", filesink.ErrWait, s.last)
	case s.length > t.Length:
		done, err := c.truncate(t.Alias, holder, t.Length)
		if err == nil && !done || waits(err) {
			// Repeated, truncate says no more; the file is open until it is done.
			f.recoveries.cut(t.Alias, time.Now())
			return fmt.Errorf("%w: HDFS cuts the file to %d bytes (%v)", filesink.ErrWait, t.Length, err)
		}
		return err
	case s.length < t.Length:
		return f.mend(ctx, c, t, s.length)
	}
	return nil
}

// recover has the NameNode close a file that is open, or returns why that is not done yet.
func (f *FS) recover(c *client, t filesink.Taking, s state, holder string) error {
	gone := time.Since(t.Since)
	if gone < settleFor {
		return &filesink.WaitError{After: settleFor - gone, Reason: fmt.Sprintf("its writer is gone for %s", gone.Round(time.Millisecond))}
	}
	if s.last != nil {
		if s.last.end() > t.Length {
			// Its writer reported no such length, unless it died right then. So it was recovered,
			// and is being cut: for another session, or a request that was not answered.
			f.recoveries.cut(t.Alias, t.Since)
		}
		has := func(node int) bool {
			committed := t.Length - s.last.offset()
			return committed <= 0 || c.hasBytes(s.last, node, committed)
		}
		if err := f.recoveries.mayAsk(t.Alias, s.last, gone, has); err != nil {
			return err
		}
	}
	done, err := c.recoverLease(t.Alias, holder)
	switch {
	case done:
		return nil
	case err == nil || waits(err):
		return fmt.Errorf("%w: HDFS recovers %v; where that does not end, start these DataNodes again (%v)", filesink.ErrWait, s.last, err)
	}
	return err
}

// waits says whether an exception means: not yet.
func waits(err error) bool {
	switch exceptionOf(err) {
	case "hdfs.protocol.AlreadyBeingCreatedException", "hdfs.protocol.RecoveryInProgressException", "hdfs.server.namenode.SafeModeException",
		"ipc.StandbyException", "ipc.RetriableException":
		return true
	}
	return false
}

// mend completes a file that HDFS recovered shorter than it was: where a DataNode that is started
// again finds the last chunk half written, it takes all of the chunk for lost.
func (f *FS) mend(ctx context.Context, c *client, t filesink.Taking, length int64) error {
	missing := t.Length - length
	if missing > int64(len(t.Tail)) {
		return fmt.Errorf("%s has %d bytes, fewer than the %d committed", t.Alias, length, t.Length)
	}
	if err := c.Remove(t.Spare); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	x, err := f.Create(ctx, t.Spare, func() {})
	if err != nil {
		return err
	}
	if err = x.Commit(ctx, t.Tail[int64(len(t.Tail))-missing:]); err == nil {
		err = x.Close(ctx)
	}
	if err != nil {
		x.Abandon()
		return fmt.Errorf("write the last %d bytes again: %w", missing, err)
	}
	if length == 0 {
		return c.rename(t.Spare, t.Alias, true)
	}
	if err := c.concat(t.Alias, t.Spare); err != nil {
		return err
	}
	s, err := c.locate(t.Alias)
	if err == nil && s.length != t.Length {
		err = fmt.Errorf("%s has %d bytes after its end was written again, not the %d committed", t.Alias, s.length, t.Length)
	}
	return err
}
