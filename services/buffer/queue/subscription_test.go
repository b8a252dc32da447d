package queue

import (
	"fmt"
	"path"
	"testing"
)

// TestWants: a subscription wants what its globs match, also after these have changed.
func TestWants(t *testing.T) {
	var s subscription
	for _, globs := range [][]string{nil, {"a"}, {"a", "b.c"}, {"lo*"}, {"a?", "x", `\*`, "[ab]1"}, {"*"}, {"logs", "log"}} {
		s.Topics = globs
		for _, topic := range []string{"", "a", "ab", "a1", "b.c", "bxc", "logs", "log", "*", "x", "y/z"} {
			want := false
			for _, g := range globs {
				ok, err := path.Match(g, topic)
				want = want || ok && err == nil
			}
			if got := s.wants(topic); got != want {
				t.Errorf("%q wants %q: %v", globs, topic, got)
			}
		}
	}
}

// BenchmarkWants is of a subscription that names its topics one by one.
func BenchmarkWants(b *testing.B) {
	s := subscription{}
	for i := range 10_000 {
		s.Topics = append(s.Topics, fmt.Sprintf("topic-%d", i))
	}
	for b.Loop() {
		s.wants("topic-9999")
	}
}
