package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// startToDie starts it with a failpoint, and returns when it has killed itself there.
func (s *service) startToDie(point string) error {
	env := s.env
	s.env = append(env[:len(env):len(env)], failpoint.Variable+"="+point)
	s.start()
	s.env = env
	s.mu.Lock()
	s.wanted = true
	ended := s.ended
	s.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		s.kill()
		return fmt.Errorf("%s was not reached", point)
	}
	var exit *exec.ExitError
	if !errors.As(s.result, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return fmt.Errorf("%s: the process ended with %v, want by SIGKILL", point, s.result)
	}
	return nil
}

// TestKilledAtEachStep: the delivery is killed by SIGKILL exactly between two steps of writing,
// rolling and adopting files, at each of them, and started again. Every record is in HDFS exactly
// once, and no file stays in use.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, stack.kafka, "roll: {interval: 1h, size: 8MiB, idle: 2s}", "commit: {interval: 200ms}, roll: {idle: 600ms}")
	createTopic(t, stack.kafka, p.topic, nil)
	for _, s := range []*service{p.buffer, p.ingest, p.kafka} {
		s.start()
	}
	for _, s := range []*service{p.buffer, p.ingest, p.kafka} {
		s.waitReady()
	}
	source := newProducer(t, stack.kafka, p.topic)
	var stop atomic.Bool
	produced := make(chan error, 1)
	go func() {
		var err error
		for !stop.Load() && err == nil {
			if err = source.produce(200, 0); err == nil && source.written.Load()%1000 == 0 {
				pause(t, time.Second) // files become idle
			}
			pause(t, 100*time.Millisecond)
		}
		produced <- err
	}()

	for _, point := range []string{
		failpoint.FSWritten + ":3", failpoint.FSCreated + ":3", failpoint.FSClosed, failpoint.FSRecovered,
		failpoint.CommitBegun, failpoint.CommitPut, failpoint.FSCreated, failpoint.FSWritten,
		failpoint.CommitWritten, failpoint.AdoptDiscarded, failpoint.CommitWritten + ":3",
		failpoint.CommitSettled, failpoint.AdoptFound, failpoint.AdoptNamed, failpoint.FSRenamed, failpoint.AdoptTaken, failpoint.AdoptFinal, failpoint.AdoptForgotten,
		failpoint.RollRenamed, failpoint.CommitRolled,
	} {
		began := time.Now()
		if err := p.hdfs.startToDie(point); err != nil {
			t.Error(err)
		}
		t.Logf("killed at %s after %.1f s", point, time.Since(began).Seconds())
	}
	stop.Store(true)
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.hdfs.start()
	n := int(source.written.Load())
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
}
