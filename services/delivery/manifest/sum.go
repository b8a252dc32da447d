package manifest

import "math/bits"

// Sum is a count and a checksum of lines in any order. Two sums are equal when the same lines were
// added as often, but for collisions of 128 bits.
type Sum struct {
	Lines int64
	a, b  uint64
}

// add adds a line by its checksum.
func (s *Sum) add(h uint64) {
	s.Lines++
	s.a += h
	// Another function of the checksum, so that lines that differ do not make up for each other.
	h = bits.RotateLeft64(h^0x9E3779B97F4A7C15, 31) * 0xBF58476D1CE4E5B9
	s.b += h ^ h>>29
}
