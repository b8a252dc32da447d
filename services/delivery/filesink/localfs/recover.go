package localfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// writtenAgo is how long a file was not written when its writer is taken to be gone.
const writtenAgo = time.Minute

// List implements filesink.Recoverer.
func (f *FS) List(ctx context.Context, dir string) (all []filesink.Listed, err error) {
	name := "."
	if dir != "/" {
		if name, err = local(dir); err != nil {
			return nil, err
		}
	}
	list, err := fs.ReadDir(f.root.FS(), name)
	if err != nil {
		return nil, wrap("list", name, err)
	}
	for _, e := range list {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.IsDir() && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return nil, wrap("look at", name, err)
		}
		all = append(all, filesink.Listed{Name: e.Name(), Dir: e.IsDir(), Bytes: info.Size(), Modified: info.ModTime()})
	}
	return all, ctx.Err()
}

// withFile calls do with an open file.
func (f *FS) withFile(ctx context.Context, what, name string, do func(*os.File, fs.FileInfo) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name, err := local(name)
	if err != nil {
		return err
	}
	file, err := f.root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return wrap(what, name, err)
	}
	info, err := file.Stat()
	if err == nil {
		err = do(file, info)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return wrap(what, strings.TrimPrefix(name, "/"), err)
	}
	return nil
}

// Free implements filesink.Recoverer. A writer holds a file's lock only while it writes.
func (f *FS) Free(ctx context.Context, name string) (size int64, err error) {
	err = f.withFile(ctx, "free", name, func(file *os.File, info fs.FileInfo) error {
		size = info.Size()
		held, err := lock(file)
		if ago := time.Since(info.ModTime()); err == nil && (!held || ago < writtenAgo) {
			err = fmt.Errorf("%w: it was written %s ago, and is taken for left behind after %s", filesink.ErrLive, ago.Round(time.Second), writtenAgo)
		}
		return err
	})
	return size, err
}

// ReadEnd implements filesink.Recoverer.
func (f *FS) ReadEnd(ctx context.Context, name string, most int64) (end []byte, err error) {
	err = f.withFile(ctx, "read", name, func(file *os.File, info fs.FileInfo) (err error) {
		end, err = io.ReadAll(io.NewSectionReader(file, max(0, info.Size()-most), most))
		return err
	})
	return end, err
}

// Cut implements filesink.Recoverer. It leaves the file's time as it was, so that Free frees it.
func (f *FS) Cut(ctx context.Context, name string, length int64) error {
	return f.withFile(ctx, "cut", name, func(file *os.File, info fs.FileInfo) error {
		if err := file.Truncate(length); err != nil {
			return err
		}
		return errors.Join(file.Sync(), f.root.Chtimes(strings.TrimPrefix(name, "/"), info.ModTime(), info.ModTime()))
	})
}

var _ filesink.Recoverer = (*FS)(nil)
