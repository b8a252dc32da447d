package nutsstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// span is a range of group numbers, both ends in it.
type span struct{ first, last uint64 }

// groupNumbers knows which groups there have ever been: every number from 1 to known is in a
// segment, or in retired because its segment was removed on purpose, or lost. Only telling what is
// lost depends on it.
//
// It is the file "retired", big-endian: magic "SPWRETRD", uint32 version 1, uint64 known, uint32
// number of spans, per span uint64 first and last, CRC32C of all before it.
type groupNumbers struct {
	known   uint64
	retired []span // ascending, disjoint, not adjacent
}

const (
	retiredMagic   = "SPWRETRD"
	retiredVersion = 1
)

// retire adds a span.
func (n *groupNumbers) retire(s span) {
	i, _ := slices.BinarySearchFunc(n.retired, s.first, func(r span, first uint64) int {
		if r.last+1 < first {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(n.retired) && n.retired[j].first <= s.last+1; j++ {
		s = span{min(s.first, n.retired[j].first), max(s.last, n.retired[j].last)}
	}
	n.retired = slices.Replace(n.retired, i, j, s)
}

// missing returns the parts of s that are not retired.
func (n *groupNumbers) missing(s span) []span {
	var lost []span
	for _, r := range n.retired {
		if r.last < s.first {
			continue
		}
		if r.first > s.last {
			break
		}
		if r.first > s.first {
			lost = append(lost, span{s.first, r.first - 1})
		}
		s.first = r.last + 1
	}
	if s.first <= s.last {
		lost = append(lost, s)
	}
	return lost
}

func (n *groupNumbers) write(dir string) error {
	b := binary.BigEndian.AppendUint32([]byte(retiredMagic), retiredVersion)
	b = binary.BigEndian.AppendUint64(b, n.known)
	b = binary.BigEndian.AppendUint32(b, uint32(len(n.retired)))
	for _, s := range n.retired {
		b = binary.BigEndian.AppendUint64(b, s.first)
		b = binary.BigEndian.AppendUint64(b, s.last)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if err := ensureFile(filepath.Join(dir, retiredName), b); err != nil {
		return err
	}
	return syncDir(dir)
}

// readGroupNumbers reads the file. Without one, as in a new store, nothing was retired.
func readGroupNumbers(dir string, damage func(string)) (groupNumbers, error) {
	b, err := os.ReadFile(filepath.Join(dir, retiredName))
	if errors.Is(err, fs.ErrNotExist) {
		return groupNumbers{}, nil
	}
	if err != nil {
		return groupNumbers{}, fmt.Errorf("read retired groups: %w", err)
	}
	const header = 24
	if end := len(b) - 4; end < header || string(b[:8]) != retiredMagic || binary.BigEndian.Uint32(b[8:]) != retiredVersion ||
		binary.BigEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) || (end-header)%16 != 0 {
		damage("file " + retiredName + ": groups that were removed on purpose are now told as missing")
		return groupNumbers{}, nil
	}
	n := groupNumbers{known: binary.BigEndian.Uint64(b[12:])}
	for b := b[header : len(b)-4]; len(b) > 0; b = b[16:] {
		n.retired = append(n.retired, span{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])})
	}
	return n, nil
}

func (n *groupNumbers) clone() groupNumbers {
	return groupNumbers{known: n.known, retired: slices.Clone(n.retired)}
}

func (n *groupNumbers) equal(other groupNumbers) bool {
	return n.known == other.known && slices.Equal(n.retired, other.retired)
}
