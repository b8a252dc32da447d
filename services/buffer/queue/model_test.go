package queue

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/internal/race"
)

var (
	modelSeeds = flag.Int("model.seeds", 150, "how many seeds TestModel runs")
	modelSeed  = flag.Uint64("model.seed", 0, "run this seed only")
)

// TestModel drives a queue with random steps and compares it with an oracle that knows, for every
// subscription and offset, whether an ack of it became durable. After every step it checks that
//
//   - the audit has no hole and its parts add up,
//   - the window keeps its bounds, and safe never falls, not over a restart with another configuration either,
//   - what a subscription does not want is not leased to it, and what is kept of that is counted,
//   - no offset is leased again after its ack was durable,
//   - no time is passed of which a record is not settled,
//   - an ordered session is leased nothing while something before it is pending elsewhere,
//
// after a crash that nothing that was safe needs Kafka's committed offset, and at the end that
// every subscription got every offset once, and those of a replay once more, but for those that
// its policy dropped or Kafka had lost.
//
// A failure prints the seed and the shortest script that was found to fail.
func TestModel(t *testing.T) {
	race.Apart(t)
	first, last := uint64(1), uint64(*modelSeeds)
	if *modelSeed > 0 {
		first, last = *modelSeed, *modelSeed
	}
	for seed := first; seed <= last; seed++ {
		script := newScript(seed, 400)
		if err := script.run(t); err != nil {
			script = script.shrink(t)
			t.Fatalf("seed %d: %v\nshrunk: %v\n%s", seed, err, script.run(t), script)
		}
	}
}

// script is a reproducible run: the random choices of a step come from the step alone, so that
// the others stay the same when one is left out.
type script struct {
	seed  uint64
	steps []step
}

type step struct {
	kind string
	dice uint64
}

// stepKinds are the steps with their weights.
var stepKinds = []struct {
	kind   string
	weight int
}{
	{"append", 22}, {"append what is known", 4}, {"gap", 1}, {"caught up", 3}, {"write", 14}, {"open session", 4}, {"receive", 14}, {"ack", 14}, {"nack", 4},
	{"time passes", 5}, {"session dies", 3}, {"pause or resume", 2}, {"crash", 2}, {"store fails", 1}, {"disk full", 2}, {"answer refetch", 14},
	{"ignore refetch", 2}, {"ingest reconnects", 2}, {"retention", 1}, {"damage", 2}, {"lose segment and crash", 1}, {"seek", 1},
	{"delete and create", 1}, {"update", 1}, {"topic is created again", 1}, {"reconfigure", 2}, {"update topics", 1},
	{"replay", 2}, {"cancel replay", 1}, {"redrive", 1},
}

func newScript(seed uint64, steps int) *script {
	r := rand.New(rand.NewPCG(seed, 1))
	total := 0
	for _, k := range stepKinds {
		total += k.weight
	}
	s := &script{seed: seed}
	for range steps {
		n := r.IntN(total)
		for _, k := range stepKinds {
			if n -= k.weight; n < 0 {
				s.steps = append(s.steps, step{k.kind, r.Uint64()})
				break
			}
		}
	}
	return s
}

func (s *script) String() string {
	var b strings.Builder
	for _, st := range s.steps {
		fmt.Fprintf(&b, "\t{%q, %#x},\n", st.kind, st.dice)
	}
	return b.String()
}

// run returns the first thing that is wrong.
func (s *script) run(t *testing.T) (err error) {
	at := -1
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("after step %d of %d: %v", at+1, len(s.steps), r)
			if _, ours := r.(modelFailure); !ours && len(s.steps) < 30 {
				panic(r)
			}
		}
	}()
	m := newModel(t, s.seed)
	for i, st := range s.steps {
		at = i
		m.rand = rand.New(rand.NewPCG(st.dice, 2))
		m.step(st.kind)
		m.check()
	}
	m.finish()
	m.passesAll()
	return nil
}

// shrink leaves out steps as long as it fails.
func (s *script) shrink(t *testing.T) *script {
	for n := len(s.steps) / 2; n > 0; {
		shorter := false
		for i := 0; i+n <= len(s.steps); {
			without := &script{s.seed, slices.Delete(slices.Clone(s.steps), i, i+n)}
			if without.run(t) != nil {
				s, shorter = without, true
				continue
			}
			i += n
		}
		if !shorter || n > len(s.steps) {
			n /= 2
		}
	}
	return s
}

// modelFailure is what a failed check panics with, so that a script can be run again.
type modelFailure string

type modelTB struct{ testing.TB }

func (modelTB) Helper()                           {}
func (modelTB) Fatal(args ...any)                 { panic(modelFailure(fmt.Sprint(args...))) }
func (modelTB) Fatalf(format string, args ...any) { panic(modelFailure(fmt.Sprintf(format, args...))) }
