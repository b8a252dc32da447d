package config

import "testing"

func TestNearest(t *testing.T) {
	keys := []string{"memory", "disk", "spill_after", "commit_after", "url", "path"}
	for word, want := range map[string]string{
		"spil_after": "spill_after", "spill-after": "spill_after", "SPILL_AFTER": "spill_after", "memroy": "memory", "dsik": "disk",
		"uri": "url", "x": "", "": "", "subscriptions": "", "after": "",
	} {
		if got := Nearest(word, keys); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"kitten", "sitting", 3}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
