package queue

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var updateTranscripts = flag.Bool("update", false, "rewrite the answers in testdata/*.txt")

// TestTranscripts replays testdata/*.txt: a line that begins with "> " is a command, what follows
// up to the next is its answer. go test -run TestTranscripts -update writes the answers anew;
// read the diff.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *updateTranscripts {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// replay runs the commands of a transcript, and returns it with the answers of now.
func replay(t *testing.T, text string) string {
	var out strings.Builder
	player := &player{sessions: make(map[string]*played)}
	player.harness = newHarness(t)
	player.watcher = player.q.Watch("k", "ingest")
	inAnswer := false
	for line := range strings.Lines(text) {
		switch command, is := strings.CutPrefix(line, "> "); {
		case is:
			out.WriteString(line)
			out.WriteString(player.do(strings.Fields(command)))
			inAnswer = true
		case strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "":
			out.WriteString(line)
			inAnswer = false
		case !inAnswer:
			t.Fatalf("%q is neither a command, an answer, nor a comment", line)
		}
	}
	return out.String()
}

// player carries out commands.
type player struct {
	*harness
	watcher  *Watcher
	sessions map[string]*played
	acks     uint64
	answer   strings.Builder
}

type played struct {
	*Session
	held []*Lease
}

func (p *player) say(format string, args ...any) { fmt.Fprintf(&p.answer, format+"\n", args...) }

func (p *player) do(words []string) string {
	p.answer.Reset()
	commands := map[string]func([]string){
		"memory": p.memory, "subscribe": p.subscribe, "unsubscribe": p.unsubscribe, "seek": p.seek, "append": p.append, "gone": p.gone, "write": p.write,
		"pass": p.pass, "open": p.open, "receive": p.receive, "ack": p.ackAll, "settle": p.settlePart, "nack": p.nack, "die": p.die, "crash": p.crash,
		"refetches": p.refetches, "refetched": p.refetched, "lost": p.lost, "damage": p.damage, "disk": p.disk, "offsets": p.offsets, "audit": p.audit,
		"undelivered": p.undelivered,
	}
	do := commands[words[0]]
	if do == nil {
		p.t.Fatalf("unknown command %q", words[0])
	}
	do(words[1:])
	return p.answer.String()
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func (p *player) report(err error) {
	if err != nil {
		p.say("error: %v", err)
	}
}

// memory BYTES: the window, by opening the queue anew.
func (p *player) memory(w []string) {
	p.cfg.MemoryBytes, p.cfg.MemoryRecords = number(w[0]), number(w[0])
	p.crash(nil)
}

// subscribe NAME [optional] [block|drop_oldest|defer] [LIMIT] [latest]
func (p *player) subscribe(w []string) {
	c := SubscriptionConfig{Name: w[0], Topics: []string{"*"}, Required: true}
	place := Earliest
	for _, word := range w[1:] {
		switch word {
		case "optional":
			c.Required = false
		case "block", "drop_oldest", "defer":
			c.OnFull = map[string]OnFull{"block": Block, "drop_oldest": DropOldest, "defer": Defer}[word]
		case "latest":
			place = Latest
		default:
			c.Limit = number(word)
		}
	}
	p.report(p.manage(func() error { return p.q.Subscribe(p.t.Context(), c, place, nil) }))
}

func (p *player) unsubscribe(w []string) {
	p.report(p.manage(func() error { return p.q.Unsubscribe(p.t.Context(), w[0], len(w) > 1) }))
}

// seek NAME OFFSET of topic t
func (p *player) seek(w []string) {
	p.report(p.manage(func() error {
		return p.q.Seek(p.t.Context(), w[0], Nowhere, []Start{{testPartition("t"), number(w[1])}})
	}))
}

// append FIRST NEXT to topic t
func (p *player) append(w []string) {
	known, err := p.q.Append(p.t.Context(), testBatch("t", number(w[0]), number(w[1])), 0)
	if known {
		p.say("known already")
	}
	p.report(err)
}

// gone FIRST NEXT: Kafka no longer had it when the ingest came
func (p *player) gone(w []string) {
	p.report(p.q.Settle(testPartition("t"), Range{number(w[0]), number(w[1])}, Lost, "retention", 0))
}

func (p *player) write([]string) {
	before := p.q.Stats().SpilledRecords
	p.harness.write()
	p.say("%d records written", p.q.Stats().SpilledRecords-before)
}

func (p *player) pass(w []string) {
	d, err := time.ParseDuration(w[0])
	if err != nil {
		p.t.Fatal(err)
	}
	p.harness.pass(d)
}

// open SESSION NAME [ordered]
func (p *player) open(w []string) {
	p.sessions[w[0]] = &played{Session: p.session(w[1], len(w) > 2, 1000)}
}

func (p *player) receive(w []string) {
	s := p.sessions[w[0]]
	for _, e := range drain(s.Session) {
		switch {
		case e.Lease != nil:
			l := e.Lease
			from := "memory"
			if l.piece.payload == nil {
				from = "disk"
			}
			if err := p.q.Load(l); err != nil {
				p.say("lease %d [%d,%d): %v", l.ID, l.Batch.First, l.Batch.Next, err)
				s.Damaged(l.ID, err)
				continue
			}
			skip := ""
			for _, r := range l.Settled {
				skip += fmt.Sprintf(", without [%d,%d)", r.First, r.Next)
			}
			p.say("lease %d [%d,%d) from %s, attempt %d%s", l.ID, l.Batch.First, l.Batch.Next, from, l.Attempt, skip)
			s.held = append(s.held, l)
		case e.Ack != nil:
			p.say("ack %d: %v", e.Ack.ID, e.Ack.Err)
		case e.Adopt != nil:
			p.say("adopt the state of session %d", e.Adopt.SessionID)
		case e.Revoked != nil:
			p.say("revoked %v", e.Revoked)
			s.held = slices.DeleteFunc(s.held, func(l *Lease) bool { return slices.Contains(e.Revoked, l.ID) })
		}
	}
}

// ack SESSION: all it holds
func (p *player) ackAll(w []string) {
	s := p.sessions[w[0]]
	p.acks++
	p.ack(s.Session, p.acks, s.held)
	s.held = nil
}

// settle SESSION I FIRST NEXT: that much of the lease at I of those it holds, which it keeps
func (p *player) settlePart(w []string) {
	s := p.sessions[w[0]]
	p.acks++
	if err := s.Ack(Ack{ID: p.acks, Leases: []AckedLease{{ID: s.held[number(w[1])].ID, Only: []Range{{number(w[2]), number(w[3])}}}}}); err != nil {
		p.t.Fatal(err)
	}
}

// nack SESSION: the first it holds
func (p *player) nack(w []string) {
	s := p.sessions[w[0]]
	s.Nack(s.held[0].ID, time.Second, "")
	s.held = s.held[1:]
}

func (p *player) die(w []string) { p.sessions[w[0]].Close() }

// crash: what was not written is gone
func (p *player) crash([]string) {
	p.reopen()
	p.watcher = p.q.Watch("k", "ingest")
}

func (p *player) refetches([]string) {
	for _, r := range asked(p.watcher) {
		p.say("refetch %d of [%d,%d)", r.ID, r.Range.First, r.Range.Next)
	}
}

// refetched ID FIRST NEXT
func (p *player) refetched(w []string) {
	_, err := p.q.Append(p.t.Context(), testBatch("t", number(w[1]), number(w[2])), uint64(number(w[0])))
	p.report(err)
}

// lost ID FIRST NEXT: Kafka no longer has what was to be refetched
func (p *player) lost(w []string) {
	p.report(p.q.Settle(testPartition("t"), Range{number(w[1]), number(w[2])}, Lost, "retention", uint64(number(w[0]))))
}

// damage: all that is stored
func (p *player) damage([]string) {
	for _, e := range p.store.entries {
		if e.Kind == BatchEntry {
			p.store.damaged[e.Ref] = true
		}
	}
}

// disk full|free
func (p *player) disk(w []string) {
	p.store.full = map[string]fullness{"full": noBatches, "free": hasSpace}[w[0]]
}

func (p *player) offsets([]string) {
	a := p.assigned("t")
	p.say("safe %d, go on at %d", a.Safe, a.Resume)
}

func (p *player) audit([]string) {
	p.checkAudit()
	accounts, err := p.q.Audit("")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, a := range accounts {
		line := fmt.Sprintf("%s: from %d", a.Subscription, a.Start)
		for _, o := range []Outcome{Delivered, DeadLettered, Dropped, Filtered, Lost} {
			if n := a.Outcomes[o]; n > 0 {
				line += fmt.Sprintf(", %d %s", n, o)
			}
		}
		for _, r := range a.Ranges {
			line += fmt.Sprintf(", [%d,%d) %s", r.First, r.Next, r.State)
		}
		p.say("%s", line)
	}
}

func (p *player) undelivered(w []string) {
	list, err := p.q.Undelivered(w[0])
	p.report(err)
	for _, u := range list {
		p.say("[%d,%d) %s: %s", u.Range.First, u.Range.Next, u.Outcome, u.Reason)
	}
}
