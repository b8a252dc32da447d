// Package localfs is a filesink.FS on a directory of this machine.
//
// What is written is synced, and so is every directory that got or lost a name. A file is locked
// (flock) during a commit and while it is truncated, and changes its name only by atomic steps.
// So a file has one place at a time, whoever is at work on it: a writer or an adopter that was
// stopped for an hour finds its file gone, or is waited for. A copy of the file would not have
// this: two adopters could each finish one.
//
// It holds no lock but a file's, and owns no goroutine.
package localfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

const (
	dirMode  = 0o755
	fileMode = 0o644
)

// FS is a directory. Symbolic links that lead out of it are not followed.
type FS struct {
	name string
	root *os.Root
}

// New returns the file system below the directory root, an absolute path, which is made when it is
// not there.
func New(root string) (*FS, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("open directory %q: not an absolute path", root)
	}
	if err := os.MkdirAll(root, dirMode); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return &FS{name: root, root: r}, nil
}

// Create implements filesink.FS.
func (f *FS) Create(ctx context.Context, name string, _ func()) (filesink.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, err := local(name)
	if err != nil {
		return nil, err
	}
	if err := f.makeDirs(path.Dir(name)); err != nil {
		return nil, wrap("create", name, err)
	}
	opened, err := f.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, wrap("create", name, err)
	}
	if err := f.syncDir(path.Dir(name)); err != nil {
		return nil, errors.Join(wrap("create", name, err), opened.Close())
	}
	failpoint.At(failpoint.FSCreated)
	return &file{fs: f, name: name, file: opened}, nil
}

// Take implements filesink.FS.
func (f *FS) Take(ctx context.Context, t filesink.Taking) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	from, err := local(t.From)
	if err != nil {
		return err
	}
	alias, err := local(t.Alias)
	if err != nil {
		return err
	}
	if err := f.take(from, alias, t); err != nil {
		return wrap("take", from, err)
	}
	return nil
}

func (f *FS) take(from, alias string, t filesink.Taking) error {
	switch _, err := f.root.Lstat(alias); {
	case err == nil:
		// Taken before. What is at from since then is a late writer's beginning.
		if err := f.root.Remove(from); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		if err := f.makeDirs(path.Dir(alias)); err != nil {
			return err
		}
		if err := f.root.Rename(from, alias); err != nil {
			return err
		}
	}
	failpoint.At(failpoint.FSRenamed)
	if err := f.syncDirs(from, alias); err != nil {
		return err
	}
	file, err := f.root.OpenFile(alias, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(cut(file, t.Length, t.Tail), file.Close())
}

// cut leaves the first length bytes, once nobody writes the file any more. It writes the tail
// again where that is gone.
func cut(file *os.File, length int64, tail []byte) error {
	if held, err := lock(file); err != nil {
		return err
	} else if !held {
		return fmt.Errorf("%w: its writer is at work", filesink.ErrWait)
	}
	failpoint.At(failpoint.FSRecovered)
	info, err := file.Stat()
	if err != nil {
		return err
	}
	missing := length - info.Size()
	if missing > int64(len(tail)) {
		return fmt.Errorf("it has %d bytes, fewer than the %d committed", info.Size(), length)
	}
	if missing > 0 {
		_, err = file.WriteAt(tail[int64(len(tail))-missing:], info.Size())
	} else {
		err = file.Truncate(length)
	}
	if err != nil {
		return err
	}
	return file.Sync()
}

// Rename implements filesink.FS. It links and unlinks, since a rename would overwrite.
func (f *FS) Rename(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	from, err := local(from)
	if err != nil {
		return err
	}
	if to, err = local(to); err != nil {
		return err
	}
	if err := f.rename(from, to); err != nil {
		return wrap("rename", from, err)
	}
	return nil
}

func (f *FS) rename(from, to string) error {
	if err := f.makeDirs(path.Dir(to)); err != nil {
		return err
	}
	if err := f.root.Link(from, to); err != nil {
		if !errors.Is(err, fs.ErrExist) || !f.same(from, to) {
			return err
		}
		// A crash came between the two steps.
	}
	// The new name is durable before the old one goes.
	if err := f.syncDir(path.Dir(to)); err != nil {
		return err
	}
	if err := f.root.Remove(from); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f.syncDir(path.Dir(from))
}

func (f *FS) same(a, b string) bool {
	infoA, errA := f.root.Lstat(a)
	infoB, errB := f.root.Lstat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// Size implements filesink.FS.
func (f *FS) Size(ctx context.Context, name string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	name, err := local(name)
	if err != nil {
		return 0, err
	}
	info, err := f.root.Lstat(name)
	if err != nil {
		return 0, wrap("look at", name, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("look at %s: not a regular file (%s)", name, info.Mode().Type())
	}
	return info.Size(), nil
}

// Remove implements filesink.FS.
func (f *FS) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name, err := local(name)
	if err != nil {
		return err
	}
	switch err := f.root.Remove(name); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return wrap("remove", name, err)
	}
	if err := f.syncDir(path.Dir(name)); err != nil {
		return wrap("remove", name, err)
	}
	return nil
}

// Probe implements filesink.FS. It does to a small file what is done to the others.
func (f *FS) Probe(ctx context.Context) error {
	name := "/.spillway-probe-" + rand.Text() // another host may have the directory, and a process of the same number
	renamed := name + "-renamed"
	err := f.probe(ctx, name, renamed)
	removing := errors.Join(f.Remove(ctx, name), f.Remove(ctx, renamed))
	if err == nil {
		err = removing
	}
	if err != nil {
		return fmt.Errorf("probe directory %s: %w", f.name, err)
	}
	return nil
}

func (f *FS) probe(ctx context.Context, name, renamed string) error {
	file, err := f.Create(ctx, name, nil)
	if err != nil {
		return err
	}
	defer file.Abandon()
	if err := file.Commit(ctx, []byte("probe")); err != nil {
		return err
	}
	if err := file.Close(ctx); err != nil {
		return err
	}
	return f.Rename(ctx, name, renamed)
}

// Close implements filesink.FS.
func (f *FS) Close() error { return f.root.Close() }

// makeDirs makes dir and those above it, durably.
func (f *FS) makeDirs(dir string) error {
	if info, err := f.root.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s: %w", dir, syscall.ENOTDIR)
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := path.Dir(dir)
	if err := f.makeDirs(parent); err != nil {
		return err
	}
	if err := f.root.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.syncDir(parent)
}

func (f *FS) syncDirs(a, b string) error {
	dir, other := path.Dir(a), path.Dir(b)
	if err := f.syncDir(dir); err != nil || dir == other {
		return err
	}
	return f.syncDir(other)
}

// syncDir makes names in dir durable.
func (f *FS) syncDir(dir string) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closing := d.Close(); err == nil {
		err = closing
	}
	return err
}

// local is the path below the root.
func local(name string) (string, error) {
	if !strings.HasPrefix(name, "/") || name != path.Clean(name) || name == "/" {
		return "", fmt.Errorf("bad path %q: want an absolute, clean path of a file", name)
	}
	return name[1:], nil
}

// wrap gives the errors that mean something here their names.
func wrap(what, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s /%s: %w: %w", what, name, filesink.ErrExist, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s /%s: %w: %w", what, name, filesink.ErrNotExist, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		return fmt.Errorf("%s /%s: %w: %w", what, name, filesink.ErrDenied, err)
	}
	return fmt.Errorf("%s /%s: %w", what, name, err)
}
