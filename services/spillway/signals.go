package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// promptly is how long a command that does not drain has to return after the first signal.
	promptly = 500 * time.Millisecond
	// stopTimeout is the default for services. It is below the minute that operators are asked to
	// give them.
	stopTimeout = 55 * time.Second
)

// stopping is what becomes of the process at the first SIGTERM or Ctrl-C. The second one ends it
// at once.
type stopping struct {
	limit atomic.Int64 // nanoseconds that the command has to return
}

type stoppingKey struct{}

// drains says that this command finishes what it has begun before it returns, and how long that
// may take.
func drains(ctx context.Context, limit time.Duration) {
	if s, ok := ctx.Value(stoppingKey{}).(*stopping); ok {
		s.limit.Store(int64(limit))
	}
}

// notify returns a context that ends with the first SIGTERM or Ctrl-C. A command that has not
// returned in time dies of the signal then, as it would if nobody caught it: it may be reading a
// pipe, or a file system that does not answer. stop ends the catching.
func notify(parent context.Context) (ctx context.Context, stop func()) {
	s := new(stopping)
	s.limit.Store(int64(promptly))
	ctx, cancel := context.WithCancel(context.WithValue(parent, stoppingKey{}, s))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case got := <-signals:
			signal.Stop(signals) // the second signal ends the process at once
			cancel()
			limit := time.Duration(s.limit.Load())
			select {
			case <-time.After(limit):
				die(got.(syscall.Signal), limit)
			case <-done:
			}
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// die ends this process by a signal that nobody catches, and says why unless that was to be
// expected.
func die(by syscall.Signal, limit time.Duration) {
	if limit > promptly {
		said := make(chan struct{})
		go func() { // stderr may be a pipe that nobody reads
			defer close(said)
			fmt.Fprintf(os.Stderr, "spillway: not done %s after the signal to stop; ending at once\n", limit)
		}()
		select {
		case <-said:
		case <-time.After(promptly):
		}
	}
	_ = syscall.Kill(syscall.Getpid(), by)
	select {} // the signal is on its way
}

// hangups returns a context that also ends when the terminal that this process was started from
// is closed, so that a service drains then. Without a terminal, SIGHUP asks to read the
// configuration again. SIGHUP never counts as the second signal, since systemd and closing
// terminals send it beside others. What nohup had ignored stays ignored. stop ends the context.
func hangups(parent context.Context, log *slog.Logger, terminal bool, reload func(context.Context)) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	if signal.Ignored(syscall.SIGHUP) {
		return ctx, cancel
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-signals:
				if terminal {
					log.Info("the terminal was closed")
					cancel()
					continue
				}
				reload(parent)
			case <-parent.Done():
				return
			}
		}
	}()
	// SIGHUP is caught until the process has ended: one that comes last must not end it otherwise.
	return ctx, cancel
}

// hasTerminal says whether this process has a controlling terminal.
func hasTerminal() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	return tty.Close() == nil
}
