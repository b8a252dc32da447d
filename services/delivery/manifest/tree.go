package manifest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Info is an item of a directory.
type Info struct {
	Name string
	Dir  bool
	Size int64
}

// Tree is a file system to read. Paths begin with a slash. All methods may be called concurrently.
type Tree interface {
	// ReadDir lists a directory, in any order. An error wraps fs.ErrNotExist where there is none.
	ReadDir(ctx context.Context, dir string) ([]Info, error)
	// Open opens a file for reading from its beginning. The caller closes it.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// Local is the directory of this machine at root.
type Local struct{ root *os.Root }

// OpenLocal opens a directory of this machine, which must be there.
func OpenLocal(root string) (*Local, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	return &Local{root: r}, nil
}

// Close closes the directory.
func (l *Local) Close() error { return l.root.Close() }

// ReadDir implements Tree. Symbolic links are left out.
func (l *Local) ReadDir(_ context.Context, dir string) ([]Info, error) {
	items, err := fs.ReadDir(l.root.FS(), below(dir))
	if err != nil {
		return nil, err
	}
	var all []Info
	for _, item := range items {
		info, err := item.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if info.IsDir() || info.Mode().IsRegular() {
			all = append(all, Info{Name: item.Name(), Dir: item.IsDir(), Size: info.Size()})
		}
	}
	return all, nil
}

// Open implements Tree.
func (l *Local) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return l.root.Open(below(name))
}

func below(name string) string {
	if name = strings.Trim(path.Clean(name), "/"); name == "" {
		return "."
	}
	return name
}

// directory is the files of one directory of a tree.
type directory struct {
	files []Info
	inUse int // files that somebody writes now
}

// maxDepth bounds how deep directories may lie in one another.
const maxDepth = 100

// walk returns the directories below root that have files, by their paths relative to it; "" is
// root itself. A root that is not there has none.
func walk(ctx context.Context, t Tree, root string, inUse func(name string) bool) (map[string]*directory, error) {
	all := make(map[string]*directory)
	var visit func(at string, depth int) error
	visit = func(at string, depth int) error {
		if depth > maxDepth {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		items, err := t.ReadDir(ctx, path.Join(root, at))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // or it is gone by now
				return nil
			}
			return err
		}
		slices.SortFunc(items, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
		d := &directory{}
		for _, item := range items {
			switch {
			case item.Dir:
				if err := visit(path.Join(at, item.Name), depth+1); err != nil {
					return err
				}
			case inUse(item.Name):
				d.inUse++
			case item.Name[0] == '_' || item.Name[0] == '.': // _SUCCESS and the like, which readers pass over
			default:
				d.files = append(d.files, item)
			}
		}
		if len(d.files)+d.inUse > 0 {
			all[at] = d
		}
		return nil
	}
	return all, visit("", 0)
}
