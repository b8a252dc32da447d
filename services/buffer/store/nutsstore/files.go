package nutsstore

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	lockName       = "LOCK"
	retiredName    = "retired"
	reserveName    = "reserve"
	bucketMetaName = "bucket.Meta"         // nutsdb's name
	engineLockName = "nutsdb-flock"        // nutsdb's name
	mergeManifest  = "merge_manifest.json" // nutsdb's name

	dataSuffix   = ".dat"  // nutsdb's name
	hintSuffix   = ".hint" // nutsdb's name
	indexSuffix  = ".index"
	ledgerSuffix = ".ledger"
	tmpSuffix    = ".tmp"
)

func segmentPath(dir string, id int64, suffix string) string {
	return filepath.Join(dir, strconv.FormatInt(id, 10)+suffix)
}

// listing is what a store's directory holds.
type listing struct {
	segments []int64 // that have a data file, ascending
	orphans  []int64 // that have an index but no data file, ascending
	nominal  int64   // size of the largest data file
	// leftovers are names of what a crash left half done, and of sidecars without a data file.
	leftovers []string
}

// listDir lists a directory.
func listDir(dir string) (listing, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return listing{}, fmt.Errorf("list store: %w", err)
	}
	var l listing
	var sidecars []string
	indexes := make(map[int64]bool)
	for _, f := range files {
		name := f.Name()
		suffix := filepath.Ext(name)
		id, err := strconv.ParseInt(strings.TrimSuffix(name, suffix), 10, 64)
		ours := err == nil && id > 0 && filepath.Join(dir, name) == segmentPath(dir, id, suffix)
		switch {
		case suffix == tmpSuffix:
			l.leftovers = append(l.leftovers, name)
		case suffix == dataSuffix && ours:
			info, err := f.Info()
			if err != nil {
				return l, fmt.Errorf("list store: %w", err)
			}
			l.segments = append(l.segments, id)
			l.nominal = max(l.nominal, info.Size())
		case suffix == dataSuffix || name == mergeManifest:
			// nutsdb would read these files, and may delete others because of them.
			return l, fmt.Errorf("list store: %s is not a file of this store", filepath.Join(dir, name))
		case (suffix == hintSuffix || suffix == indexSuffix || suffix == ledgerSuffix) && ours:
			sidecars = append(sidecars, name)
			indexes[id] = indexes[id] || suffix == indexSuffix
		}
	}
	slices.Sort(l.segments)
	for _, name := range sidecars {
		id, _ := strconv.ParseInt(strings.TrimSuffix(name, filepath.Ext(name)), 10, 64)
		if slices.Contains(l.segments, id) {
			continue
		}
		if indexes[id] && !slices.Contains(l.orphans, id) {
			l.orphans = append(l.orphans, id)
		}
		l.leftovers = append(l.leftovers, name)
	}
	slices.Sort(l.orphans)
	return l, nil
}

// createData makes an empty data file durable: all zero, so that nothing in it can be mistaken
// for an entry. After an error there is none.
func (s *Store) createData(id, size int64) (*dataFile, error) {
	path := segmentPath(s.dir, id, dataSuffix)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil { // a disk that cannot write is to be met before nutsdb is opened, which leaves a goroutine behind
		_, err = f.WriteAt(make([]byte, 4096), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("create segment %d: %w", id, errors.Join(err, f.Close(), os.Remove(path)))
	}
	return &dataFile{File: f, info: info, size: size, step: min(allocStep, max(s.segmentEnd/4, smallAllocStep))}, nil
}

// removeData removes a segment's files. The data file is emptied first, which frees its space even
// though nutsdb may hold it open for long.
func removeData(dir string, id int64) error {
	var errs []error
	for _, suffix := range []string{indexSuffix, hintSuffix, ledgerSuffix} {
		errs = append(errs, os.Remove(segmentPath(dir, id, suffix)))
	}
	data := segmentPath(dir, id, dataSuffix)
	errs = append(errs, os.Truncate(data, 0), os.Remove(data))
	errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, fs.ErrNotExist) })
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove segment %d: %w", id, err)
	}
	return nil
}

// diskBytes is what a segment's files use, by allocated blocks: data files are sparse.
func diskBytes(dir string, id int64) int64 {
	var n int64
	for _, suffix := range []string{dataSuffix, hintSuffix, indexSuffix, ledgerSuffix} {
		if info, err := os.Stat(segmentPath(dir, id, suffix)); err == nil {
			n += allocatedBytes(info)
		}
	}
	return n
}

func allocatedBytes(info fs.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// newFile is a file that appears under its name only when it is complete and on disk.
type newFile struct {
	*bufio.Writer
	crc  hash.Hash32 // of what is flushed
	file *os.File
	path string
}

func createFile(path string) (*newFile, error) {
	f, err := os.OpenFile(path+tmpSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create file: %w", err)
	}
	crc := crc32.New(castagnoli)
	return &newFile{Writer: bufio.NewWriterSize(io.MultiWriter(f, crc), 64<<10), crc: crc, file: f, path: path}, nil
}

// checksum flushes, and returns the CRC32C of all that was written.
func (f *newFile) checksum() (uint32, error) {
	if err := f.Flush(); err != nil {
		return 0, fmt.Errorf("write %s: %w", f.path, err)
	}
	return f.crc.Sum32(), nil
}

// commit gives the file its name. The caller syncs the directory.
func (f *newFile) commit() error {
	err := f.Flush()
	if err == nil {
		err = f.file.Sync()
	}
	if err = errors.Join(err, f.file.Close()); err == nil {
		err = os.Rename(f.path+tmpSuffix, f.path)
	}
	if err != nil {
		_ = os.Remove(f.path + tmpSuffix)
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

// abandon removes a file that was not committed.
func (f *newFile) abandon() {
	_ = f.file.Close() // fails after commit, when there is nothing left to do
	_ = os.Remove(f.path + tmpSuffix)
}

// ensureFile makes content the durable content of a file.
func ensureFile(path string, content []byte) error {
	if b, err := os.ReadFile(path); err == nil && string(b) == string(content) {
		f, err := os.Open(path)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("sync %s: %w", path, err)
		}
		return nil
	}
	f, err := createFile(path)
	if err != nil {
		return err
	}
	defer f.abandon()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.commit()
}
