package owners

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

const old = int64(time.Hour / time.Millisecond)

// parseMember reads a member: its name, what it holds as shard@epoch, shard~ (opening) or shard!
// (closing), and after a bar what it cannot serve; or words; after two bars what it
// cannot serve since 2 s. A name with a star is draining.
func parseMember(t *testing.T, text string, shards int) member {
	t.Helper()
	fields := strings.Fields(text)
	name, draining := strings.CutSuffix(fields[0], "*")
	m := member{id: name, claim: claim{Version: formatVersion, Advertise: name + ":7400", Shards: shards, AgeMillis: old, Draining: draining}}
	unable, age := false, old
	for _, f := range fields[1:] {
		var shard int
		h := held{AgeMillis: old}
		switch {
		case f == "|", f == "||":
			unable = true
			if f == "||" {
				age = 2000
			}
			continue
		case f == "one":
			m.Most = 1
			continue
		case f == "young":
			m.AgeMillis = 10_000
			continue
		case unable:
			if _, err := fmt.Sscanf(f, "%d", &shard); err != nil {
				t.Fatal(f)
			}
			m.Unable = append(m.Unable, inability{shard, "broken", age})
			continue
		case strings.HasSuffix(f, "~"):
			h.State = Opening
		case strings.HasSuffix(f, "!"):
			h.State = Closing
		default:
			h.State, h.Epoch = Open, 1
		}
		if _, err := fmt.Sscanf(strings.NewReplacer("~", "", "!", "").Replace(f), "%d@%d", &h.Shard, &h.Epoch); err != nil {
			if _, err := fmt.Sscanf(f, "%d", &h.Shard); err != nil {
				t.Fatal(f)
			}
		}
		m.Held = append(m.Held, h)
	}
	return m
}

func TestDivide(t *testing.T) {
	for _, test := range []struct {
		name    string
		members string // separated by semicolons
		want    string // owners by shard, - is nobody
		again   time.Duration
	}{
		{"the first", "a", "aaaaaa", 0},
		{"all at once", "a; b; c", "abcabc", 0},
		{"two that know each other as little", "a young; b young", "ababab", 0},
		{"they stay", "a 0 1; b 2 3; c 4 5", "aabbcc", 0},
		{"one is dead", "a 0 1; c 4 5", "aaaccc", 0},
		{"one has come and all is calm: a quarter, at least one", "a 0 1 2 3 4 5; b", "aaaaa-", 0},
		{"two have come", "a 0 1 2 3 4 5; b; c", "aaaaa-", 0},
		{"two have more than the third", "a 0 1 2; b 3 4 5; c", "aa-bb-", 0},
		{"one has just come", "a 0 1 2 3 4 5; b young", "aaaaaa", 20 * time.Second},
		{"two more are a reason", "a 0 1 2 3; b 4 5", "aaa-bb", 0},
		{"as even as can be", "a 0 1 2; b 3 4 5", "aaabbb", 0},
		{"one is being opened: no move for balance now, but later", "a 0 1 2 3 4; b 5~", "aaaaab", 30 * time.Second},
		{"a shard that is closed is nobody's", "a 0 1 2! 3; b 4 5", "aa-abb", 0},
		{"a shard that was closed goes to who has least", "a 0 1 3; b 4 5", "aababb", 0},
		{"the higher epoch counts", "a 0@5 1 2 5; b 0@7 3 4", "baabba", 0},
		{"also over one that opens", "a 0~ 1 2 5; b 0@7 3 4", "baabba", 0},
		{"also when that one closes", "a 0@5 1 2; b 0@7! 3 4 5", "-aabbb", 0},
		{"its owner cannot", "a 0 1 | 0; b 2 3; c 4 5", "-abbcc", 0},
		{"its owner cannot, since a moment", "a 0 1 || 0; b 2 3; c 4 5", "aabbcc", 3 * time.Second},
		{"nobody else can", "a 0 1 | 0; b 2 3 | 0; c 4 5 | 0", "aabbcc", 0},
		{"nobody has it, and one cannot", "a 1 | 0; b 2 3; c 4 5", "babbcc", 30 * time.Second},
		{"nobody has it, and none can", "a 1 | 0; b 2 3 | 0; c 4 5 | 0", "aabbcc", 0},
		{"Kafka itself is away", "a 0 1 | 0 1; b 2 3 | 2 3; c 4 5 | 5", "aabbcc", 0},
		{"Kafka itself is away for all but one that has nothing to write", "a 0 1 | 0 1; b 2 3 | 2 3; c 4 5", "----cc", 0},
		{"balance avoids who cannot", "a 0 1 2 3 4 5; b | 5", "aaaa-a", 0},
		{"and who is in trouble", "a 0 1 2 3 4; b 5 | 5; c", "aaaaa-", 30 * time.Second},
		{"draining", "a 0 1; b*; c 4 5", "aaaccc", 0},
		{"draining, with a rest", "a 0 1; b* 2! 3!; c 4 5", "aa--cc", 0},
		{"all are draining", "a*; b*", "------", 0},
		{"not more than they may have", "a one; b one; c", "abcccc", 0},
		{"one has none to spare", "a one 0; b one 1; c one", "abc---", 0},
		{"no room for what its owner cannot serve", "a one 0 | 0; b one 1; c one 2; d one 3; e one 4; f one 5", "abcdef", 0},
		{"room for it", "a one 0 | 0; b one 1; c one 2; d one 3; e one 4; f one 5; g one", "-bcdef", 0},
		{"one that closes has no room", "a one 1!; b one 0", "b-----", 0},
	} {
		var members []member
		names := map[string]string{"": "-"}
		for text := range strings.SplitSeq(test.members, ";") {
			m := parseMember(t, text, 6)
			members, names[m.id] = append(members, m), m.id
		}
		for range 3 { // whatever the order
			rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			d := divide(members)
			got := ""
			for _, id := range d.owners {
				got += names[id]
			}
			if got != test.want || d.again != test.again {
				t.Errorf("%s: %s gets %s, again after %v; want %s, %v", test.name, test.members, got, d.again, test.want, test.again)
			}
		}
	}
}

// TestDivideMovesWhatWasMeant: a shard that was given up for a member goes there, if it can.
func TestDivideMovesWhatWasMeant(t *testing.T) {
	for members, want := range map[string]string{
		"a 0 1 2 4; b 3 5; c":            "c",
		"a 0 1 2 4; b 3 5":               "b", // c is gone
		"a 0 1 2 4; b 3 5; c* ":          "b", // and gives up its own
		"a 0 1 2; b 3; c 4 5":            "c",
		"a 0 1 2 4; b 3 5; c | 1":        "c", // something else it cannot
		"a 0 1 4; b 3 5; c 2 | 2; d 0@9": "c",
	} {
		var all []member
		for text := range strings.SplitSeq(members, ";") {
			m := parseMember(t, text, 7)
			if m.id == "a" {
				m.Wishes = map[int]string{6: "c:7400"}
			}
			all = append(all, m)
		}
		if d := divide(all); d.owners[6] != want {
			t.Errorf("%s: the shard goes to %q, want %q", members, d.owners[6], want)
		}
	}
}

// TestDivideRefuses members that cannot be right, and says why.
func TestDivideRefuses(t *testing.T) {
	a, b, c := parseMember(t, "a 0 1", 4), parseMember(t, "b 2 3", 4), parseMember(t, "c", 5)
	second := parseMember(t, "b2 0@9", 4)
	second.Advertise, second.AgeMillis = b.Advertise, 1000
	strange := member{id: "x", wrong: "not understood"}
	d := divide([]member{a, second, c, b, strange})
	if got := fmt.Sprint(d.owners); got != "[a a b b]" {
		t.Errorf("owners %v", got)
	}
	for id, want := range map[string]string{"b2": "another buffer of the group advertises b:7400, too", "c": "the queue has 5 shards here, and 4 at most buffers", "x": "not understood"} {
		if !strings.Contains(d.refused[id], want) {
			t.Errorf("%s is told %q, want %q", id, d.refused[id], want)
		}
	}
	if len(d.refused) != 3 {
		t.Errorf("refused: %v", d.refused)
	}
}

// TestDivisionsConverge: whatever members hold at first, after a few generations each shard has
// one owner, who can serve it while anybody can, the members have as many each as possible, and
// nothing moves any more.
func TestDivisionsConverge(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		shards := 1 + r.IntN(20)
		members := make([]member, 1+r.IntN(6))
		for i := range members {
			name := string(rune('a' + i))
			m := member{id: name, claim: claim{Version: formatVersion, Advertise: name, Shards: shards, AgeMillis: r.Int64N(60_000), Draining: i > 0 && r.IntN(10) == 0}}
			for s := range shards {
				if r.IntN(3) == 0 {
					state := []State{Opening, Open, Open, Open, Closing}[r.IntN(5)]
					h := held{Shard: s, State: state, AgeMillis: r.Int64N(60_000)}
					if state != Opening {
						h.Epoch = r.Uint64N(1000)
					}
					m.Held = append(m.Held, h)
				}
			}
			members[i] = m
		}
		epoch := uint64(1000)
		var d division
		calm := 0
		for generation := 0; calm < 3; generation++ {
			if generation > 10*shards+20 {
				t.Fatalf("seed %d: no end: %v", seed, d)
			}
			d = divide(members)
			before := members
			members = nil
			for _, m := range before {
				// It does as it is told.
				var now []held
				for s, owner := range d.owners {
					at := slices.IndexFunc(m.Held, func(h held) bool { return h.Shard == s })
					switch {
					case owner != m.id:
						continue
					case at >= 0 && m.Held[at].State == Closing:
						t.Fatalf("seed %d: %s is given shard %d, which it closes", seed, m.id, s)
					case at >= 0 && m.Held[at].State == Open:
						h := m.Held[at]
						h.AgeMillis += 31_000
						now = append(now, h)
					default:
						epoch++
						now = append(now, held{Shard: s, State: Open, Epoch: epoch, AgeMillis: 31_000})
					}
				}
				for _, h := range now {
					if m.Draining && !slices.ContainsFunc(m.Held, func(had held) bool { return had.Shard == h.Shard }) {
						t.Fatalf("seed %d: %s drains, and is given shard %d", seed, m.id, h.Shard)
					}
				}
				m.Held, m.AgeMillis = now, m.AgeMillis+31_000
				members = append(members, m)
			}
			if len(d.moves) == 0 && !slices.Contains(d.owners, "") {
				calm++
			} else {
				calm = 0
			}
		}
		least, most, sum := shards, 0, 0
		for _, m := range members {
			sum += len(m.Held)
			if !m.Draining {
				least, most = min(least, len(m.Held)), max(most, len(m.Held))
			}
		}
		if sum != shards || most-least > 1 {
			t.Fatalf("seed %d: %d shards, %d owned, from %d to %d a member", seed, shards, sum, least, most)
		}
	}
}

// FuzzParse: what other programs say in a group does no harm.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"advertise":"a:1","shards":3,"held":[{"shard":-1,"state":"x","epoch":1}],"unable":[{"shard":7}],"wishes":{"9":"a:1"}}`), []byte(`{"members":["a"],"owners":[5,-2,0],"epochs":[1]}`))
	f.Add([]byte(`{"version":2}`), []byte(``))
	f.Add([]byte(`{"version":1,"shards":-1}`), []byte(`{"version":7}`))
	f.Add([]byte(`{"version":1,"shards":1000000000000}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if c, err := parseClaim(first); err == nil {
			d := divide([]member{{id: "a", claim: c}, {id: "b", claim: claim{Shards: 3}}})
			if len(d.owners) != d.shards {
				t.Errorf("%d owners of %d shards", len(d.owners), d.shards)
			}
		}
		if s, err := parseShare(second); err == nil {
			for shard := range 4 {
				_, _ = s.owner(shard), s.epoch(shard)
			}
		}
	})
}
