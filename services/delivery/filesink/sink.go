// Package filesink writes records to files on HDFS or a local directory, each record exactly once.
//
// The buffer keeps, as the session's sink state, one entry per file that is not final: its path and
// the length up to which its content counts. An ack settles batches and changes entries in one durable
// write, and that is the whole trick: bytes beyond the committed length never happened, and whoever
// inherits an entry cuts the file there.
//
//   - Commit (commit.go): entries of new files are put; the collected records are written and synced;
//     one ack settles their batches and puts the new lengths (settle.go). When a write fails or the ack is
//     refused, the files concerned are given up: they are cut to what was committed and made final, and the
//     records, which come again, go to new files. The rest of their batches is settled.
//   - Roll (roll.go): a file that is big, old or idle enough is renamed to its final name, then its
//     entry is deleted.
//   - Adopt (adopt.go): files given up, and those of dead sessions, are taken over: renamed to an alias
//     that was put in the entry before, cut, renamed to the final name.
//   - Mark (success.go): a directory whose time is over, by the records of all partitions, gets a _SUCCESS.
//
// A format whose files are written in one piece (Format.Whole) has each commit wait until its files are due to be
// final, and roll them all; the leases are held meanwhile.
//
// A session that may be lost touches nothing any more: before every step it is looked whether it lives.
// What a slow step still does then is harmless, as FS.Take shuts out writers and moves the file away.
//
// Goroutines, all ended when Serve returns: the loop (loop.go), which runs in Serve and decides
// everything; one commit at a time, so that the next is collected while it is written; the adopter's
// workers and the completer; and while the file system fails one that waits for it. A commit owns the stored side of
// the files in it and gives it back with its result. Locks: Sink.mu, trouble.mu, adopter.mu and completer.mu, none
// taken under another.
package filesink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Sink is a delivery to files. It is also a Prober, Timed, Troubled, a FileLister and a FileRoller.
type Sink struct {
	cfg     *config.HDFS
	fs      FS
	log     *slog.Logger
	layout  *layout
	format  serializer.Format
	spare   sync.Pool // of *[]byte, to seal chunks in
	trouble trouble

	mu      sync.Mutex
	serving *serving   // nil between sessions
	open    []openFile // as of the last commit
}

// openFile is what is told about a file in use.
type openFile struct {
	inUse, final       string
	bytes, records     int64
	begun, committedAt time.Time
}

// New prepares a delivery to fs, which is the Sink's from now on. An error names the key of cfg that
// cannot work. cfg must not change afterwards.
func New(cfg *config.HDFS, fs FS, log *slog.Logger) (*Sink, error) {
	format, err := serializer.New(cfg)
	if err != nil {
		return nil, err
	}
	layout, err := newLayout(cfg, format.Extension(), lookupHost)
	if err != nil {
		return nil, err
	}
	return &Sink{cfg: cfg, fs: fs, log: log, layout: layout, format: format, trouble: trouble{log: log}}, nil
}

// Serve implements delivery.Sink. One at a time.
func (s *Sink) Serve(ctx context.Context, session delivery.Session) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := newServing(s, session)
	s.mu.Lock()
	s.serving = v
	s.mu.Unlock()

	v.adopter.start(ctx)
	v.marks.start(ctx)
	err := v.loop(ctx)
	if err == nil {
		v.adopter.drain(ctx)
	}
	cancel()
	v.wg.Wait()
	v.adopter.wait()
	v.marks.wait()

	s.mu.Lock()
	s.serving, s.open = nil, nil
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

// Trouble implements delivery.Troubled: the last error of the file system, until it works again.
func (s *Sink) Trouble() error { return s.trouble.Err() }

// OpenFiles implements delivery.FileLister, as of the last commit.
func (s *Sink) OpenFiles() []*spillwayv1.OpenFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := make([]*spillwayv1.OpenFile, len(s.open))
	for i, f := range s.open {
		files[i] = &spillwayv1.OpenFile{
			InUsePath: f.inUse, FinalPath: f.final, CommittedBytes: f.bytes, Records: f.records,
			OpenedAt: timestamppb.New(f.begun), CommittedAt: timestamppb.New(f.committedAt),
		}
	}
	return files
}

// RollFiles implements delivery.FileRoller. What was collected for the files so far is committed first.
func (s *Sink) RollFiles(ctx context.Context, prefix string) ([]string, error) {
	s.mu.Lock()
	v := s.serving
	s.mu.Unlock()
	if v == nil {
		return nil, errNoSession
	}
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
		return nil, fmt.Errorf("the session ended while files were rolled; those that are not final yet will be made so by the next one")
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
