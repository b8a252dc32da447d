package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// stages are the services of a pipeline that run in this process, in stages: those of one stage
// stop side by side, after those of all later stages. The zero value is ready for use.
type stages struct {
	list [][]*running
	// failed is closed when a part ends by itself, which none does while it can work.
	failed chan struct{}
	once   sync.Once
}

type running struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error // valid when done is closed
}

// start runs the processes, by name, as a stage.
func (all *stages) start(stage map[string]*process) {
	if all.failed == nil {
		all.failed = make(chan struct{})
	}
	var started []*running
	for name, process := range stage {
		ctx, stop := context.WithCancel(context.Background())
		p := &running{name: name, stop: stop, done: make(chan struct{})}
		go func() {
			defer close(p.done)
			p.err = process.serve(ctx)
			if ctx.Err() == nil {
				all.once.Do(func() { close(all.failed) })
			}
		}()
		started = append(started, p)
	}
	all.list = append(all.list, started)
}

// stop stops one stage after the other, the last one first, each when the one before has
// drained. It returns what the parts failed with.
func (all *stages) stop() error {
	var errs []error
	for _, stage := range slices.Backward(all.list) {
		for _, p := range stage {
			p.stop()
		}
		for _, p := range stage {
			if <-p.done; p.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p.name, p.err))
			}
		}
	}
	return errors.Join(errs...)
}
