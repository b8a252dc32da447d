package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes. In text it is a whole number with a unit: B, KiB, MiB, GiB, TiB
// (powers of 1024) or KB, MB, GB, TB (powers of 1000). No unit is bytes.
type ByteSize int64

// Binary units.
const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
	TiB ByteSize = 1 << 40
)

// byteUnits are in the order in which String tries them.
var byteUnits = [...]struct {
	name string
	size ByteSize
}{
	{"TiB", TiB}, {"TB", 1e12},
	{"GiB", GiB}, {"GB", 1e9},
	{"MiB", MiB}, {"MB", 1e6},
	{"KiB", KiB}, {"KB", 1e3},
	{"B", 1},
}

// ParseByteSize reads what ByteSize's text form allows. The result is never negative.
func ParseByteSize(text string) (ByteSize, error) {
	digits := len(text)
	if i := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = i
	}
	number, unit := text[:digits], strings.TrimLeft(text[digits:], " ")
	size := ByteSize(1)
	known := unit == ""
	for _, u := range byteUnits {
		if unit == u.name {
			size, known = u.size, true
		}
	}
	if number == "" || !known {
		return 0, fmt.Errorf("bad byte size %q: want a whole number and a unit, such as 64MiB, 100GiB, 500KB or 4096", text)
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || ByteSize(n) > math.MaxInt64/size {
		return 0, fmt.Errorf("bad byte size %q: too large; want at most 1024TiB", text)
	}
	return ByteSize(n) * size, nil
}

// String is exact: the largest unit that leaves a whole number. ParseByteSize reads it back.
func (b ByteSize) String() string {
	for _, u := range byteUnits {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return "0B"
}

// UnmarshalText reads the text form; YAML and flags use it.
func (b *ByteSize) UnmarshalText(text []byte) error {
	size, err := ParseByteSize(string(text))
	if err != nil {
		return err
	}
	*b = size
	return nil
}

// MarshalText is String.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }
