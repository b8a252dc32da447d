// Package filesink writes records to files on HDFS or a local directory, each record exactly once.
//
// The buffer keeps, as the session's sink state, one entry per file that is not final: its path
// and the length up to which its content counts. An ack settles batches and changes entries in one
// durable write, and that is the whole trick: bytes beyond the committed length never happened,
// and whoever inherits an entry cuts the file there.
//
//   - Commit (commit.go): entries of new files are put; the collected records are written and synced;
//     one ack settles their batches and puts the new lengths (settle.go). When a write fails or the ack is
//     refused, the files concerned are given up: they are cut to what was committed and made final, and the
//     records, which come again, go to new files. The rest of their batches is settled.
//   - Roll (roll.go): a file that is big, old or idle enough is closed and renamed to its final name, then its
//     entry is deleted. Until then it stays open.
//   - Adopt (adopt.go, finish.go): files given up, and those of dead sessions, are taken over: renamed to an alias
//     that was put in the entry before, cut, renamed to the final name.
//   - Release (stuck.go): a file that cannot be finished is tried further on, but holds back the time of other
//     directories no longer; its own gets an _INCOMPLETE.
//   - Mark (success.go): a directory whose time is over, by the records of all partitions, gets a _SUCCESS, unless it has
//     an _INCOMPLETE.
//   - Let go (gone.go): when the subscription is deleted, all files become final, since nobody inherits them.
//
// Names carry a random number of the session (bucket.go), so a file at a name is this session's,
// or that of the entry that has the name. Where a create fails because the name is taken, the file
// is somebody else's, and is left alone.
//
// A format whose files are written in one piece (Format.Whole) has each commit wait until its
// files are due to be final, and roll them all; the leases are held meanwhile.
//
// A session that is lost lets go of its open files at once (opened.go) and touches nothing any
// more: before every step it is looked whether it lives. What a slow step still does then is
// harmless, as FS.Take shuts out writers and moves the file away.
//
// Goroutines, all ended when Serve returns: the loop (loop.go), which runs in Serve and decides
// everything; one commit at a time, so that the next is collected while it is written; the
// adopter's workers and the completer; and while the file system fails one that waits for it. A
// commit owns the stored side of the files in it and gives it back with its result. Locks:
// Sink.mu, trouble.mu, adopter.mu, completer.mu and opened.mu, none taken under another.
package filesink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/config"
)

// deadLetterDenied is the on_denied by which records for a place that is denied are dead-lettered.
const deadLetterDenied = "dead_letter"

// errNoSession is the answer to RollFiles when there is nothing it could roll.
var errNoSession = errors.New("no session with the buffer: nothing can be rolled now")

// Sink is a delivery to files. It is also a Prober, Timed, Troubled, a FileLister and a
// FileRoller.
type Sink struct {
	cfg     *config.HDFS
	fs      *timedFS
	log     *slog.Logger
	layout  *layout
	format  serializer.Format
	spare   sync.Pool // of *[]byte, to seal chunks in
	trouble trouble

	mu       sync.Mutex
	servings []*serving // one for each session that is served now
}

// openFile is what is told about a file in use, or one that is to be finished.
type openFile struct {
	key                string
	inUse, final       string
	bytes, records     int64
	begun, committedAt time.Time // zero: unknown
	trouble            string    // why it cannot be finished; empty: nothing known
	failing            time.Time // since when
}

// New prepares a delivery to fs, which is the Sink's from now on. An error names the key of cfg
// that cannot work. cfg must not change afterwards.
func New(cfg *config.HDFS, fs FS, log *slog.Logger) (*Sink, error) {
	format, err := serializer.New(cfg)
	if err != nil {
		return nil, err
	}
	layout, err := newLayout(cfg, format.Extension(), lookupHost)
	if err != nil {
		return nil, err
	}
	return &Sink{cfg: cfg, fs: newTimedFS(fs), log: log, layout: layout, format: format, trouble: trouble{log: log}}, nil
}

// errEndedMeanwhile is the answer to RollFiles when the session ends before it is done.
var errEndedMeanwhile = errors.New("the session ended while files were rolled; those that are not final yet will be made so by the next one")

// Serve implements delivery.Sink.
func (s *Sink) Serve(ctx context.Context, session delivery.Session) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := newServing(s, session)
	s.mu.Lock()
	s.servings = append(s.servings, v)
	s.mu.Unlock()

	defer context.AfterFunc(ctx, v.open.end)()
	v.adopter.start(ctx)
	v.marks.start(ctx)
	err := v.loop(ctx)
	if err == nil {
		v.adopter.drain(ctx)
	}
	cancel()
	v.open.end()
	v.wg.Wait()
	v.adopter.wait()
	v.marks.wait()
	if errors.Is(session.Err(), delivery.ErrSubscriptionGone) {
		v.finishAll(context.WithoutCancel(ctx))
	}

	s.mu.Lock()
	s.servings = slices.DeleteFunc(s.servings, func(other *serving) bool { return other == v })
	s.mu.Unlock()
	close(v.done)
	if lost := session.Err(); lost != nil {
		return lost
	}
	return err
}

// Ordering implements delivery.Sink: files have no order among them.
func (s *Sink) Ordering() spillwayv1.Ordering { return spillwayv1.Ordering_ORDERING_NONE }

// WantsWatermarks implements delivery.Timed.
func (s *Sink) WantsWatermarks() bool { return s.cfg.SuccessAfter > 0 }

// Probe implements delivery.Prober.
func (s *Sink) Probe(ctx context.Context) error { return s.fs.Probe(ctx) }

// Trouble implements delivery.Troubled: the last error of the file system, until it works again,
// or why a file cannot be finished.
func (s *Sink) Trouble() error {
	if err := s.trouble.Err(); err != nil {
		return err
	}
	for _, v := range s.served() {
		if err := v.adopter.Err(); err != nil {
			return err
		}
	}
	return nil
}

// served returns the sessions that are served now.
func (s *Sink) served() []*serving {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.servings)
}

// OpenFiles implements delivery.FileLister, as of the last commit. Files that are to be finished
// are among them.
func (s *Sink) OpenFiles() []*spillwayv1.OpenFile {
	var open []openFile
	for _, v := range s.served() {
		open = append(append(open, v.adopter.files()...), v.published()...)
	}
	files := make([]*spillwayv1.OpenFile, len(open))
	for i, f := range open {
		files[i] = &spillwayv1.OpenFile{
			InUsePath: f.inUse, FinalPath: f.final, CommittedBytes: f.bytes, Records: f.records,
			OpenedAt: timestamp(f.begun), CommittedAt: timestamp(f.committedAt),
			StateKey: f.key, Trouble: f.trouble, TroubleSince: timestamp(f.failing),
		}
	}
	return files
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// RollFiles implements delivery.FileRoller, for the files of all sessions. What was collected for
// the files so far is committed first.
func (s *Sink) RollFiles(ctx context.Context, prefix string) ([]string, error) {
	served := s.served()
	if len(served) == 0 {
		return nil, errNoSession
	}
	paths, errs := make([][]string, len(served)), make([]error, len(served))
	var wg sync.WaitGroup
	for i, v := range served {
		wg.Go(func() { paths[i], errs[i] = v.rollFiles(ctx, prefix) })
	}
	wg.Wait()
	return slices.Concat(paths...), errors.Join(errs...)
}

// rollFiles is RollFiles for one session.
func (v *serving) rollFiles(ctx context.Context, prefix string) ([]string, error) {
	r := &rollRequest{prefix: prefix, answer: make(chan rolled, 1)}
	select {
	case v.requests <- r:
	case <-v.done:
		return nil, errNoSession
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-r.answer:
		return a.paths, a.err
	case <-v.done:
		return nil, errEndedMeanwhile
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close implements io.Closer.
func (s *Sink) Close() error {
	if err := s.fs.Close(); err != nil {
		return fmt.Errorf("close file system: %w", err)
	}
	return nil
}

var (
	_ delivery.Sink       = (*Sink)(nil)
	_ delivery.Prober     = (*Sink)(nil)
	_ delivery.Timed      = (*Sink)(nil)
	_ delivery.Troubled   = (*Sink)(nil)
	_ delivery.FileLister = (*Sink)(nil)
	_ delivery.FileRoller = (*Sink)(nil)
)
