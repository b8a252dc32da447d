package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// List implements filesink.Recoverer.
func (f *FS) List(ctx context.Context, dir string) (all []filesink.Listed, err error) {
	err = f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		list, err := c.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, placeErr(err))
		}
		all = nil
		for _, info := range list {
			all = append(all, filesink.Listed{Name: info.Name(), Dir: info.IsDir(), Bytes: info.Size(), Modified: info.ModTime()})
		}
		return nil
	})
	return all, err
}

// Free implements filesink.Recoverer. recoverLease would take a file from a writer that lives, and
// nothing tells when a lease was renewed last. A request to append to the file does: the NameNode
// refuses it within a minute of that (the lease's soft limit), and begins to recover the file
// after it. Nothing is appended.
func (f *FS) Free(ctx context.Context, name string) (size int64, err error) {
	err = f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		s, err := c.locate(name)
		if err == nil && !s.open {
			f.left.Delete(name)
		}
		if err == nil && s.open {
			err = f.free(c, name, s)
			if err == nil {
				s, err = c.locate(name)
			}
			if err == nil && s.open {
				err = fmt.Errorf("%w: %v is still being recovered", filesink.ErrWait, s.last)
			}
		}
		size = s.length
		if err != nil {
			return fmt.Errorf("free %s: %w", name, placeErr(err))
		}
		return nil
	})
	return size, err
}

func (f *FS) free(c *client, name string, s state) error {
	holder := newName()
	why, known := f.left.Load(name)
	if !known {
		err := c.execute("append", message("AppendResponseProto"), "AppendRequestProto", fields{"src": name, "clientName": holder})
		switch exceptionOf(err) {
		case "hdfs.protocol.AlreadyBeingCreatedException":
			return fmt.Errorf("%w: %w", filesink.ErrLive, err)
		case "hdfs.protocol.RecoveryInProgressException":
			err = nil
		}
		if err != nil {
			return err
		}
		// It has no lease now, or one of ours, or is being recovered.
		f.left.Store(name, whyLeft)
	} else if why == whyCut {
		return fmt.Errorf("%w: HDFS cuts the file", filesink.ErrWait) // to ask for more would disturb it
	}
	length := s.length
	if s.last != nil {
		length = max(length, s.last.end())
	}
	return f.recover(c, filesink.Taking{From: name, Alias: name, Length: length}, s, holder)
}

// Why nobody writes a file that is open.
const (
	whyLeft = "left"
	whyCut  = "cut"
)

// ReadEnd implements filesink.Recoverer.
func (f *FS) ReadEnd(ctx context.Context, name string, most int64) (end []byte, err error) {
	err = f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		file, err := c.Open(name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, placeErr(err))
		}
		size := file.Stat().Size()
		end = make([]byte, min(size, most))
		_, err = io.ReadFull(io.NewSectionReader(file, size-int64(len(end)), int64(len(end))), end)
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		return nil
	})
	return end, err
}

// Cut implements filesink.Recoverer.
func (f *FS) Cut(ctx context.Context, name string, length int64) error {
	return f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		done, err := c.truncate(name, newName(), length)
		if err == nil && !done {
			f.left.Store(name, whyCut)
			err = fmt.Errorf("%w: HDFS cuts the file to %d bytes", filesink.ErrWait, length)
		}
		if err != nil {
			return fmt.Errorf("cut %s: %w", name, placeErr(err))
		}
		return nil
	})
}

var _ filesink.Recoverer = (*FS)(nil)
