package shards

import (
	"fmt"
	"math"
	"testing"
)

// TestGolden holds where partitions are, which must never change: the numbers were computed by
// another program.
func TestGolden(t *testing.T) {
	numbers := []int{1, 2, 3, 6, 16, 256}
	for _, test := range []struct {
		cluster, topic string
		partition      int32
		want           []int
	}{
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 0, []int{0, 1, 1, 1, 7, 190}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 1, []int{0, 1, 2, 2, 13, 206}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 2, []int{0, 1, 1, 5, 6, 147}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 3, []int{0, 0, 0, 0, 0, 51}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 4, []int{0, 0, 2, 5, 5, 156}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 5, []int{0, 1, 1, 3, 14, 145}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 6, []int{0, 1, 1, 5, 5, 164}},
		{"MkU3OEVBNTcwNTJENDM2Qg", "logs", 7, []int{0, 1, 1, 5, 15, 128}},
		{"", "t", 0, []int{0, 0, 0, 4, 11, 44}},
		{"", "t", 1, []int{0, 1, 2, 2, 2, 106}},
		{"", "t", math.MaxInt32, []int{0, 1, 2, 5, 5, 226}},
		{"c", "a.b-c_d", 7, []int{0, 1, 1, 4, 12, 64}},
		{"кластер", "logs", 3, []int{0, 1, 2, 3, 15, 135}},
	} {
		for i, n := range numbers {
			if got := Of(test.cluster, test.topic, test.partition, n); got != test.want[i] {
				t.Errorf("%s %s/%d of %d shards is in %d, want %d", test.cluster, test.topic, test.partition, n, got, test.want[i])
			}
		}
	}
}

// TestBalance: each shard gets its share, within 5 standard deviations, of the partitions of one
// topic and of topics with one partition.
func TestBalance(t *testing.T) {
	const partitions = 10_000
	for name, at := range map[string]func(i int) (string, int32){
		"one topic":   func(i int) (string, int32) { return "logs", int32(i) },
		"many topics": func(i int) (string, int32) { return fmt.Sprint("t", i), 0 },
	} {
		for _, n := range []int{2, 3, 6, 16, 100} {
			counts := make([]int, n)
			for i := range partitions {
				topic, partition := at(i)
				counts[Of("cluster", topic, partition, n)]++
			}
			mean := float64(partitions) / float64(n)
			for shard, count := range counts {
				if off := math.Abs(float64(count) - mean); off > 5*math.Sqrt(mean) {
					t.Errorf("%s: shard %d of %d has %d partitions, want about %.0f", name, shard, n, count, mean)
				}
			}
		}
	}
}

// TestMovement: with one shard more, a partition stays where it is or goes to the new one.
func TestMovement(t *testing.T) {
	const partitions = 5_000
	for n := 1; n < 20; n++ {
		moved := 0
		for p := range int32(partitions) {
			before, after := Of("cluster", "logs", p, n), Of("cluster", "logs", p, n+1)
			if before == after {
				continue
			}
			if moved++; after != n {
				t.Fatalf("partition %d goes from shard %d to %d when there are %d", p, before, after, n+1)
			}
		}
		if want := partitions / (n + 1); moved < want*8/10 || moved > want*12/10 {
			t.Errorf("%d of %d partitions move to shard %d, want about %d", moved, partitions, n, want)
		}
	}
}

// TestCount: the counts of all shards are those of Of, and sum up to all partitions.
func TestCount(t *testing.T) {
	for _, shards := range []int{1, 3, 16} {
		sum := int32(0)
		for shard := range shards {
			n := int32(0)
			for p := range int32(50) {
				if Of("c", "t", p, shards) == shard {
					n++
				}
			}
			if got := Count("c", "t", 50, shard, shards); got != n {
				t.Errorf("shard %d of %d has %d partitions, want %d", shard, shards, got, n)
			}
			sum += n
		}
		if sum != 50 {
			t.Errorf("%d shards have %d of 50 partitions", shards, sum)
		}
	}
}
