package nutsstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"reflect"
	"time"

	"github.com/nutsdb/nutsdb"
)

const (
	bucketName = "b"
	bucketID   = 1
	keySize    = 8
	// entryOverhead is at least what nutsdb adds to a value: its largest header, and our key.
	entryOverhead = nutsdb.MaxEntryHeaderSize + keySize
	// ledgerKey is the key of every group without a batch: such a group is read only when a store
	// is opened, by the scanner, so that nutsdb need not remember each.
	ledgerKey = 0
)

// engine is nutsdb as this package uses it: one entry per transaction, never View, Update or
// Merge, and every panic an error.
type engine struct {
	db      *nutsdb.DB
	nominal int64 // nutsdb's SegmentSize
	// committed is told how long a transaction took to be appended and synced; it may be nil.
	committed func(time.Duration)
}

// openEngine opens nutsdb on a directory in which every data file but the last one, which is
// active and all zero, has a hint file.
func openEngine(dir string, nominal, active int64) (e *engine, err error) {
	o := nutsdb.DefaultOptions
	o.Dir = dir
	o.EntryIdxMode = nutsdb.HintKeyAndRAMIdxMode // values stay on disk
	o.RWMode = nutsdb.FileIO
	o.SyncEnable = true
	o.MergeInterval = 0
	o.SegmentSize = nominal
	o.EnableHintFile = true
	defer recovered(&err, "open")
	db, err := nutsdb.Open(o)
	if err != nil {
		return nil, fmt.Errorf("open nutsdb: %w", err)
	}
	e = &engine{db: db, nominal: nominal}
	if db.MaxFileID != active {
		return nil, errors.Join(fmt.Errorf("open nutsdb: active file is %d, not %d", db.MaxFileID, active), e.close())
	}
	return e, nil
}

func recovered(err *error, what string) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%s nutsdb: panic: %v", what, r)
	}
}

// write runs one transaction; it is durable when write returns nil. With rotate, it goes to the
// next file, which must exist, all zero.
func (e *engine) write(rotate bool, do func(*nutsdb.Tx) error) (err error) {
	tx, err := e.db.Begin(true)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // fails when Commit has already ended the transaction
		}
	}()
	defer recovered(&err, "write to")
	active := e.db.MaxFileID
	if rotate {
		active++
		e.db.ActiveFile.ActualSize = e.nominal // a full file is what makes nutsdb go to the next one
	}
	if err := do(tx); err != nil {
		return err
	}
	began := time.Now()
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if e.committed != nil {
		e.committed(time.Since(began))
	}
	if e.db.MaxFileID != active {
		return fmt.Errorf("commit: active file is %d, not %d", e.db.MaxFileID, active)
	}
	return nil
}

// put stores a value. It does not keep it.
func (e *engine) put(key uint64, value []byte, rotate bool) error {
	return e.write(rotate, func(tx *nutsdb.Tx) error {
		// The key must be fresh memory: nutsdb's index keeps it.
		if err := tx.Put(bucketName, keyOf(key), value, nutsdb.Persistent); err != nil {
			return fmt.Errorf("put: %w", err)
		}
		return nil
	})
}

// forget removes keys from nutsdb's index, of which it must have at least one: a transaction that
// writes nothing does not rotate. That it writes tombstones is only in the way.
func (e *engine) forget(keys []uint64, rotate bool) error {
	return e.write(rotate, func(tx *nutsdb.Tx) error {
		for _, k := range keys {
			if err := tx.Delete(bucketName, keyOf(k)); err != nil && !errors.Is(err, nutsdb.ErrKeyNotFound) {
				return fmt.Errorf("delete: %w", err)
			}
		}
		return nil
	})
}

// known returns those of the keys that nutsdb has in its index.
func (e *engine) known(keys []uint64) (known []uint64, err error) {
	tx, err := e.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback()
	defer recovered(&err, "ask")
	for _, k := range keys {
		if ok, err := tx.Has(bucketName, keyOf(k)); err == nil && ok { // any error is a way to say no
			known = append(known, k)
		}
	}
	return known, nil
}

// get returns a value in fresh memory. It must not be called for a key of a removed file, which
// nutsdb would create anew.
func (e *engine) get(key uint64) (value []byte, err error) {
	tx, err := e.db.Begin(false)
	if errors.Is(err, nutsdb.ErrDBClosed) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // also after a panic in Get, which a damaged header causes
	defer recovered(&err, "read from")
	value, err = tx.Get(bucketName, keyOf(key))
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	return value, nil
}

// used is how many bytes of the active file are written. The caller excludes writes.
func (e *engine) used() int64 { return e.db.ActiveFile.ActualSize }

func (e *engine) close() (err error) {
	defer recovered(&err, "close")
	if err := e.db.Close(); err != nil {
		return fmt.Errorf("close nutsdb: %w", err)
	}
	return endLeaks(e.db)
}

// endLeaks closes the descriptor that nutsdb leaves open when it is closed. The goroutine that it
// leaves behind cannot be ended.
func endLeaks(db *nutsdb.DB) error {
	field := func(v reflect.Value, name string) reflect.Value {
		f := v.FieldByName(name)
		return reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem()
	}
	buckets := field(reflect.ValueOf(db).Elem(), "bm").Elem()
	if err := field(buckets, "fd").Interface().(*os.File).Close(); err != nil {
		return fmt.Errorf("close nutsdb's bucket file: %w", err)
	}
	return nil
}

func keyOf(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// bucketMeta is the only content of bucket.Meta: the bucket "b", id 1, a B-tree. nutsdb writes it
// without fsync, and without it ignores every entry.
func bucketMeta() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0)                       // checksum of the rest, below
	b = binary.LittleEndian.AppendUint16(b, 1)                          // inserted
	b = binary.LittleEndian.AppendUint32(b, uint32(10+len(bucketName))) // length of the rest
	b = binary.LittleEndian.AppendUint64(b, bucketID)
	b = binary.LittleEndian.AppendUint16(b, nutsdb.DataStructureBTree)
	b = append(b, bucketName...)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
	return b
}

// dataEntry is the header of an entry in a nutsdb data file, in nutsdb's order.
type dataEntry struct {
	timestamp, keySize, valueSize, flag, ttl, status, structure, txID, bucket uint64

	headerSize int64
}

// parseDataEntry reads the header at b, which may be cut short.
//
//	uint32 CRC-32 (IEEE, little-endian) of the rest, nine uvarints, key, value
func parseDataEntry(b []byte) (e dataEntry, ok bool) {
	at := 4
	if len(b) < at {
		return e, false
	}
	for _, field := range []*uint64{&e.timestamp, &e.keySize, &e.valueSize, &e.flag, &e.ttl, &e.status, &e.structure, &e.txID, &e.bucket} {
		v, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return e, false
		}
		*field = v
		at += n
	}
	e.headerSize = int64(at)
	return e, e.keySize == keySize && e.valueSize <= math.MaxInt32 && e.structure == uint64(nutsdb.DataStructureBTree) && e.bucket == bucketID
}

func (e *dataEntry) size() int64 { return e.headerSize + keySize + int64(e.valueSize) }

func (e *dataEntry) isGroup() bool {
	return e.flag == uint64(nutsdb.DataSetFlag) && e.status == uint64(nutsdb.Committed) && e.ttl == uint64(nutsdb.Persistent)
}

func (e *dataEntry) isTombstone() bool {
	return e.flag == uint64(nutsdb.DataDeleteFlag) && e.valueSize == 0
}

// hint is a record of a hint file: it tells nutsdb where a key's entry is.
func (e *dataEntry) hint(segment, at int64, key []byte) []byte {
	h := nutsdb.HintEntry{BucketId: e.bucket, ValueSize: uint32(e.valueSize), Timestamp: e.timestamp, TTL: uint32(e.ttl),
		Flag: uint16(e.flag), Status: uint16(e.status), Ds: uint16(e.structure), DataPos: uint64(at), FileID: segment, Key: key}
	return h.Encode()
}
