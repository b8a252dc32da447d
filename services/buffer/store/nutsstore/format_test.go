package nutsstore

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nutsdb/nutsdb"
)

// TestFormat holds every byte that this store and nutsdb write to what docs/storage-format.md
// says. When it fails after a new version of nutsdb was taken, the stores that exist cannot be
// read by it.
func TestFormat(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, batch("meta", []byte("payload")), change("change"))
	end := s.engine.used()
	h.mustAppend(s, change("no batch"))
	h.mustClose(s)
	data, err := os.ReadFile(filepath.Join(h.dir, "1.dat"))
	if err != nil {
		t.Fatal(err)
	}

	const value = "" +
		"53505747524f5550" + "00000001" + "CCCCCCCC" + // SPWGROUP, version, checksum
		"0000000000000001" + "0000000000000001" + "00000003" + "00000073" + // group, segment, entries, length
		"03000000" + "0000000a" + "00000000" + "CCCCCCCC" + // snapshot, meta, payload, checksum
		"01000000" + "00000004" + "00000007" + "CCCCCCCC" + // batch
		"02000000" + "00000006" + "00000000" + "CCCCCCCC" // change
	entry := data[:end]
	head, ok := parseDataEntry(entry)
	if !ok || head.flag != 1 || head.ttl != 0 || head.status != 1 || head.structure != 2 || head.bucket != 1 || head.size() != end {
		t.Fatalf("nutsdb's entry is %+v, %d bytes; its first bytes are %x", head, end, data[:64])
	}
	if again := head.encode(nil, keyOf(1), entry[head.headerSize+keySize:]); !bytes.Equal(again, entry) {
		t.Errorf("nutsdb writes\n%x, this package\n%x", entry, again)
	}
	if crc := binary.LittleEndian.Uint32(entry); crc != crc32.ChecksumIEEE(entry[4:]) {
		t.Errorf("nutsdb's checksum is %x", crc)
	}
	got := hex.EncodeToString(entry[head.headerSize+keySize:])
	for i := range value {
		if value[i] != 'C' && got[i] != value[i] {
			t.Errorf("the group is\n%s, want\n%s", got, value)
			break
		}
	}
	if rest := string(entry[int(head.headerSize)+keySize+len(value)/2:]); rest != "snapshot 1"+"meta"+"payload"+"change" {
		t.Errorf("metas and payloads are %q", rest)
	}
	if next, ok := parseDataEntry(data[end:]); !ok || binary.BigEndian.Uint64(data[end+next.headerSize:]) != ledgerKey {
		t.Errorf("a group without a batch is %+v", next)
	}

	s, _ = h.mustOpen() // seals
	h.mustClose(s)
	// Bucket, sizes, timestamp, TTL, flag, status, structure, position, file, then the key.
	hint, err := os.ReadFile(filepath.Join(h.dir, "1.hint"))
	want := []byte{1, keySize}
	for _, v := range []uint64{head.valueSize, head.timestamp, 0, 1, 1, 2, 0} {
		want = binary.AppendUvarint(want, v)
	}
	if want = append(binary.AppendVarint(want, 1), keyOf(1)...); err != nil || !bytes.Equal(hint, want) {
		t.Errorf("1.hint is %x, want %x; %v", hint, want, err)
	}
	meta, err := os.ReadFile(filepath.Join(h.dir, bucketMetaName))
	if want := "da970bf101000b000000010000000000000002" + "0062"; err != nil || hex.EncodeToString(meta) != want {
		t.Errorf("%s is %x, want %s; %v", bucketMetaName, meta, want, err)
	}
}

// TestBucketMetaIsWhatNutsdbWrites compares it with a database of nutsdb's own.
func TestBucketMetaIsWhatNutsdbWrites(t *testing.T) {
	o := nutsdb.DefaultOptions
	o.Dir, o.MergeInterval = t.TempDir(), 0
	db, err := nutsdb.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *nutsdb.Tx) error { return tx.NewBucket(nutsdb.DataStructureBTree, bucketName) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(o.Dir, bucketMetaName)); err != nil || !bytes.Equal(got, bucketMeta()) {
		t.Errorf("nutsdb writes %x, this package %x; %v", got, bucketMeta(), err)
	}
}

// TestVersionOfNutsdb: what this package leans on was read in the source of one version.
func TestVersionOfNutsdb(t *testing.T) {
	mod, err := os.ReadFile("../../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "\tgithub.com/nutsdb/nutsdb v1.1.0\n") {
		t.Error("nutsdb is not v1.1.0: read what changed in its formats, rotation and descriptors, then run the traps")
	}
}
