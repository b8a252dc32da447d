package buffer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/failpoint"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// Mover moves a queue between its directory and Kafka while no buffer has it open. Each step is
// durable before the next, and every attempt finds out from both places how far the one before
// got:
//
//	          the directory                        Kafka
//	Import    whole                                is empty, or was exported from
//	          whole                                arriving: batches are copied
//	          marked as kept in Kafka, and whole   arriving
//	          marked                               whole
//	          marked as imported: files go         whole
//	Export    marked                               whole
//	          marked with an id; arriving          whole
//	          marked with the id; arriving         moved away, with the id
//	          marked with the id; whole            moved away
//	          whole                                moved away
//
// A buffer refuses to open the queue from a directory that is marked, and from a place where it is
// arriving or from where it was moved away. So at no time can both be opened.
type Mover struct {
	Queue    string
	Dir      string // of the queue
	Kafka    kafkastore.Config
	Shards   int
	Shard    int // that Export moves
	DryRun   bool
	Log      *slog.Logger
	Progress func(Moving) // may be nil

	access   kafkaclient.Access
	instance string
	epochs   map[int]int64 // with which the mover owns shards
	at       func(step string) error
}

// Moving is how far a move is.
type Moving struct {
	Shard   int
	Of      queue.Totals
	Batches int
	Bytes   int64
}

// MovedShard is what became of a shard.
type MovedShard struct {
	Shard int `json:"shard"`
	queue.Totals
	Damaged int    `json:"damaged"` // batches that stayed behind, and are read from the source again
	There   int    `json:"there"`   // batches that an earlier attempt had copied
	Result  string `json:"result"`
}

// Results of moves.
const (
	WouldMove = "would be moved"
	WasMoved  = "moved"
	WasThere  = "was there already"
	GivenUp   = "stays: the import that had begun is given up"
)

// NewMover prepares to move a queue of the configuration, which must have both places. It connects
// to nothing yet.
func NewMover(cfg *config.Buffer, name string, log *slog.Logger) (*Mover, error) {
	q := cfg.Queues[name]
	access, err := kafkaclient.NewAccess(q.Store.Kafka.TLS, q.Store.Kafka.SASL, log)
	if err != nil {
		return nil, fmt.Errorf("buffer.queues.%s.store.kafka: %w", name, err)
	}
	return &Mover{Queue: name, Dir: filepath.Join(cfg.DataDir, name), Shards: max(q.Shards, 1), Shard: cfg.Shard, Log: log, access: access,
		Kafka: kafkastore.Config{Topics: KafkaTopics(name, q, access), Address: "spillway store", Log: log}}, nil
}

// Close ends connections.
func (m *Mover) Close() { m.access.Close() }

// step is between two steps.
func (m *Mover) step(name string) error {
	failpoint.At(name)
	if m.at != nil {
		return m.at(name)
	}
	return nil
}

func (m *Mover) markPath() string { return filepath.Join(m.Dir, markName) }

// where the directory is, for people.
func (m *Mover) where() string {
	dir, err := filepath.Abs(m.Dir)
	if err != nil {
		dir = m.Dir
	}
	host, _ := os.Hostname()
	return host + ":" + dir
}

func (m *Mover) openDir(opts queue.StoreOptions) (queue.Store, error) {
	return nutsstore.Open(m.Dir, nutsstore.Config{Log: m.Log}, opts)
}

// openKafka takes a shard, and once more if nobody else has had it since.
func (m *Mover) openKafka(ctx context.Context, shard int) func(queue.StoreOptions) (queue.Store, error) {
	return func(opts queue.StoreOptions) (queue.Store, error) {
		if m.instance == "" {
			m.instance, m.epochs = rand.Text(), make(map[int]int64)
		}
		cfg := m.Kafka
		cfg.Shard, cfg.Instance, cfg.After = shard, m.instance, m.epochs[shard]
		s, err := kafkastore.Open(ctx, cfg, opts)
		if err != nil {
			return nil, err
		}
		m.epochs[shard] = s.Epoch()
		return s, nil
	}
}

func (m *Mover) lookAtKafka(ctx context.Context, shard int) func(queue.StoreOptions) (queue.Store, error) {
	return func(opts queue.StoreOptions) (queue.Store, error) {
		cfg := m.Kafka
		cfg.Shard = shard
		return kafkastore.Look(ctx, cfg, opts)
	}
}

// lookAtDir is what lies in the directory. It fails when a buffer has it.
func (m *Mover) lookAtDir(opts queue.StoreOptions) (queue.Store, error) {
	in, err := nutsstore.Inspect(m.Dir)
	if err != nil {
		return nil, err
	}
	s, err := in.Open(opts)
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return s, nil
}

// found is what is in a place, which is closed again.
func (m *Mover) found(open func(queue.StoreOptions) (queue.Store, error)) (*queue.Found, error) {
	s, f, err := queue.LookAt(m.Log, open)
	if err != nil {
		return nil, err
	}
	return f, s.Close()
}

// progress passes on how far a copy is, and ends it with ctx.
func (m *Mover) progress(ctx context.Context, shard int, of queue.Totals) func(queue.Copied) error {
	return func(c queue.Copied) error {
		if m.Progress != nil {
			m.Progress(Moving{shard, of, c.Batches, c.Bytes})
		}
		if err := m.step(failpoint.MoveCopying); err != nil {
			return err
		}
		return context.Cause(ctx)
	}
}

// copyTo has the batches copied, and says how many were.
func (m *Mover) copyTo(ctx context.Context, from *queue.Contents, moved queue.Moved, shard int, open func(queue.StoreOptions) (queue.Store, error)) (MovedShard, error) {
	out := MovedShard{Shard: shard, Totals: from.Totals(), Result: WasMoved}
	store, there, err := from.Arrive(moved, open)
	if err != nil {
		return out, err
	}
	progress := m.progress(ctx, shard, out.Totals)
	err = from.Copy(store, there, func(c queue.Copied) error {
		out.There, out.Damaged = c.There, c.Damaged
		return progress(c)
	})
	return out, errors.Join(err, store.Close())
}

// Import moves the queue from the directory to Kafka: to the shard that it is, or divided among
// all.
func (m *Mover) Import(ctx context.Context) (all []MovedShard, err error) {
	in, marked, err := readMark(m.markPath())
	if err != nil {
		return nil, err
	}
	if !nutsstore.IsStore(m.Dir) {
		return nil, fmt.Errorf("%s has no data of the queue: there is nothing to move to Kafka", m.Dir)
	}
	if in.Imported {
		return []MovedShard{{Result: WasThere}}, m.removeStore()
	}
	open := m.openDir
	if m.DryRun {
		open = m.lookAtDir
	}
	from, err := queue.Load(m.Log, open)
	if err != nil {
		return nil, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, from.Close())
		}
	}()
	missing, err := m.missing(ctx, from, marked)
	if err != nil {
		return nil, err
	}
	_, of := from.Shard()
	keep := func(shard int) {
		if of != m.Shards {
			from.Keep(shard, m.Shards, func(cluster, topic string, partition int32) int {
				return shards.Of(cluster, topic, partition, m.Shards)
			})
		}
	}
	moved := queue.Moved{Ledger: from.LedgerID(), ID: rand.Text(), Where: m.where(), By: "spillway store import"}
	for _, shard := range missing {
		keep(shard)
		if m.DryRun {
			all = append(all, MovedShard{Shard: shard, Totals: from.Totals(), Result: WouldMove})
			continue
		}
		one, err := m.copyTo(ctx, from, moved, shard, m.openKafka(ctx, shard))
		if err != nil {
			return nil, fmt.Errorf("shard %d: %w", shard, err)
		}
		all = append(all, one)
	}
	if len(missing) == 0 {
		all = append(all, MovedShard{Result: WasThere})
	}
	if m.DryRun {
		return all, nil
	}
	if err := m.step(failpoint.MoveCopied); err != nil {
		return nil, err
	}
	in = mark{Topic: m.Kafka.Topics.Name, Brokers: m.Kafka.Topics.Brokers}
	if err := writeMark(m.markPath(), in); err != nil {
		return nil, err
	}
	if err := m.step(failpoint.MoveMarked); err != nil {
		return nil, err
	}
	for i, shard := range missing {
		keep(shard)
		if err := from.Complete(from.EpochBase(), all[i].Damaged, m.openKafka(ctx, shard)); err != nil {
			return nil, fmt.Errorf("shard %d: %w", shard, err)
		}
		if err := m.step(failpoint.MoveLedger); err != nil {
			return nil, err
		}
	}
	closed = true
	in.Imported = true
	if err := errors.Join(from.Close(), writeMark(m.markPath(), in)); err != nil {
		return nil, err
	}
	if err := m.step(failpoint.MoveDone); err != nil {
		return nil, err
	}
	return all, m.removeStore()
}

// missing are the shards that Kafka does not have of what is in the directory. It refuses a move
// that would give up data.
func (m *Mover) missing(ctx context.Context, from *queue.Contents, marked bool) (missing []int, err error) {
	if moved := from.Moved(); moved != nil {
		return nil, fmt.Errorf("%s has only a part of the queue's data: run %s again first, which goes on", m.Dir, moved.By)
	}
	if from.LedgerID() == "" {
		return nil, fmt.Errorf("the ledger in %s is lost or of an old version: start a buffer of this version with it once, without store.kafka", m.Dir)
	}
	number, of := from.Shard()
	var to []int
	switch {
	case of == m.Shards:
		to = []int{number}
	case of == 1:
		for shard := range m.Shards {
			to = append(to, shard)
		}
	default:
		return nil, fmt.Errorf("%s has shard %d of %d of the queue, and %d shards are configured: they are moved to as many shards only, or drained", m.Dir, number, of, m.Shards)
	}
	for _, shard := range to {
		found, err := m.found(m.lookAtKafka(ctx, shard))
		if err != nil {
			return nil, err
		}
		switch {
		case found.Moved == nil && found.Ledger == from.LedgerID() && !marked:
			return nil, fmt.Errorf("shard %d in %s.* has the data of the queue already, and %s has it, too, and is not marked: it is a copy; remove it", shard, m.Kafka.Topics.Name, m.Dir)
		case found.Moved == nil && found.Ledger == from.LedgerID():
		case found.Empty, found.Moved != nil && found.Moved.Ledger == from.LedgerID():
			missing = append(missing, shard)
		default:
			return nil, fmt.Errorf("shard %d in %s.* has other data of the queue, which would be lost: have new topics made (another topic, and store init), or remove %s when that one's is the one that is not needed",
				shard, m.Kafka.Topics.Name, m.Dir)
		}
	}
	return missing, nil
}

// removeStore removes the files of a queue that was moved to Kafka. The mark stays.
func (m *Mover) removeStore() error {
	if m.DryRun {
		return nil
	}
	files, err := os.ReadDir(m.Dir)
	for _, f := range files {
		if f.Name() != markName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(m.Dir, f.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("the queue is in Kafka, and its old files cannot be removed; try again: %w", err)
	}
	return nil
}

// Export moves a shard from Kafka to the directory.
func (m *Mover) Export(ctx context.Context) (*MovedShard, error) {
	in, marked, err := readMark(m.markPath())
	if err != nil {
		return nil, err
	}
	there := &queue.Found{Empty: true}
	if nutsstore.IsStore(m.Dir) && !in.Imported {
		if there, err = m.found(m.lookAtDir); err != nil {
			return nil, err
		}
	}
	look, err := queue.Load(m.Log, m.lookAtKafka(ctx, m.Shard))
	if err != nil {
		return nil, err
	}
	out := &MovedShard{Shard: m.Shard, Totals: look.Totals(), Result: WouldMove}
	ledger, moved := look.LedgerID(), look.Moved()
	if err := look.Close(); err != nil {
		return nil, err
	}
	whole := there.Ledger != "" && there.Moved == nil
	switch {
	case moved != nil && moved.Arriving:
		return m.giveUp(ctx, moved, there)
	case moved != nil && whole && there.Ledger == ledger && (!marked || in.Export == moved.ID):
		if out.Result = WasThere; m.DryRun {
			return out, nil
		}
		return out, m.unmark()
	case moved != nil && in.Export != moved.ID:
		return nil, fmt.Errorf("%s has moved the queue to %s: move it from there, with store import; what the topics still have is old", moved.By, moved.Where)
	case ledger == "":
		return nil, fmt.Errorf("shard %d in %s.* has no data of the queue: there is nothing to move", m.Shard, m.Kafka.Topics.Name)
	case !marked && !there.Empty:
		return nil, fmt.Errorf("%s has data of the queue already, and so has Kafka: remove the one that is not needed", m.Dir)
	}
	if m.DryRun {
		return out, nil
	}
	if there.Moved == nil || !there.Moved.Arriving || in.Export == "" { // what is left there is old
		if err := m.removeStore(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if in.Export == "" {
		in = mark{Topic: m.Kafka.Topics.Name, Brokers: m.Kafka.Topics.Brokers, Export: rand.Text()}
		if err := writeMark(m.markPath(), in); err != nil {
			return nil, err
		}
	}
	from, err := queue.Load(m.Log, m.openKafka(ctx, m.Shard))
	if err != nil {
		return nil, err
	}
	*out, err = m.export(ctx, from, in.Export)
	if err = errors.Join(err, from.Close()); err != nil {
		return nil, err
	}
	return out, m.unmark()
}

func (m *Mover) export(ctx context.Context, from *queue.Contents, id string) (MovedShard, error) {
	moved := queue.Moved{Ledger: from.LedgerID(), ID: id, Where: m.Kafka.Topics.Name + ".* in Kafka", By: "spillway store export"}
	out, err := m.copyTo(ctx, from, moved, m.Shard, m.openDir)
	if err == nil {
		err = m.step(failpoint.MoveCopied)
	}
	if err == nil && from.Moved() == nil {
		moved.Where = m.where()
		err = from.MarkMoved(moved)
	}
	if err == nil {
		err = m.step(failpoint.MoveMarked)
	}
	if err == nil {
		err = from.Complete(from.EpochBase()+uint64(m.epochs[m.Shard]), out.Damaged, m.openDir)
	}
	if err == nil {
		err = m.step(failpoint.MoveLedger)
	}
	return out, err
}

// giveUp has a queue stay in the directory of which an import has not moved all. No shard may be
// open for buffers in Kafka.
func (m *Mover) giveUp(ctx context.Context, moved *queue.Moved, there *queue.Found) (*MovedShard, error) {
	if there.Ledger != moved.Ledger || there.Moved != nil {
		return nil, fmt.Errorf("%s from %s has not ended: run it again there, or store export", moved.By, moved.Where)
	}
	for shard := range m.Shards {
		found, err := m.found(m.lookAtKafka(ctx, shard))
		if err != nil {
			return nil, err
		}
		if found.Moved == nil && !found.Empty {
			return nil, fmt.Errorf("%s has moved shard %d already, and not all of them: run it again, and then store export", moved.By, shard)
		}
	}
	out := &MovedShard{Shard: m.Shard, Result: GivenUp}
	if m.DryRun {
		return out, nil
	}
	return out, m.unmark()
}

// unmark lets the queue be opened from the directory.
func (m *Mover) unmark() error {
	if err := os.Remove(m.markPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("let the queue be opened from its directory: %w", err)
	}
	return syncDir(m.Dir)
}

// sameTopics returns whether two marks name the same topics.
func (m mark) sameTopics(other mark) bool {
	return m.Topic == other.Topic && slices.Equal(m.Brokers, other.Brokers)
}
