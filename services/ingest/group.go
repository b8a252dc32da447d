package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/shards"
)

const (
	commitInterval = time.Second
	// sessionTimeout is after what silence Kafka gives a dead instance's partitions to others.
	sessionTimeout   = 10 * time.Second
	rebalanceTimeout = 3 * sessionTimeout
	heartbeatEvery   = sessionTimeout / 5
	// heartbeatRetry is the pause after a heartbeat without an answer.
	heartbeatRetry = 500 * time.Millisecond
	// lostAfter is how long a source stays ready after it lost its place in the group.
	lostAfter = 30 * time.Second
	// leaveTimeout bounds the last commit, and the farewell to the group.
	leaveTimeout = 5 * time.Second
)

// consume is a member of the group for topics until ctx ends or other topics are to be read. An
// error says that the group is another pipeline's.
func (s *source) consume(ctx context.Context, buffers *shards.Buffers, topics map[string]int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group := kafkaclient.NewGroup(s.members, kafkaclient.GroupConfig{Group: s.cfg.Group, Topics: slices.Sorted(maps.Keys(topics)),
		SessionTimeout: sessionTimeout, RebalanceTimeout: rebalanceTimeout, Ours: clientIDs, Ledger: s.ledger})
	s.notJoined()
	if err := s.lookForRivals(ctx, group); err != nil {
		return err
	}
	var rival *kafkaclient.RivalError
	// What was seen before joining is what the group's leader divides, or older.
	seen := topics
	var since time.Time // when the place in the group was lost; zero: there was none yet
	for ctx.Err() == nil {
		if since.IsZero() || time.Since(since) > lostAfter {
			s.notJoined()
		}
		late := time.AfterFunc(lostAfter, s.notJoined)
		assignment, err := group.Join(ctx)
		var committed map[string]map[int]kafkaclient.Committed
		if err == nil {
			committed, err = group.Committed(ctx, assignment.Partitions)
		}
		late.Stop()
		if errors.As(err, &rival) {
			break
		}
		if err != nil {
			if ctx.Err() == nil && s.kafka.Failed(ctx, err) == nil && (since.IsZero() || time.Since(since) > lostAfter) {
				s.notJoined()
			}
			continue
		}
		s.kafka.Over()
		s.rivals.over(s.log)
		s.onReady(true, "")
		if assignment.Divided != nil { // by what this member saw then, which may be less
			seen = assignment.Divided
		}
		var other bool
		seen, other = s.generation(ctx, buffers, group, assignment, committed, seen)
		since = time.Now()
		if other {
			break
		}
	}
	last, done := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer done()
	if err := group.Leave(last); err != nil {
		s.log.Warn("leaving the group failed; its other members wait until this one's session is over", "group", s.cfg.Group, "error", err)
	}
	if rival != nil {
		return rival
	}
	return nil
}

// notJoined reports that the source has no place in its group.
func (s *source) notJoined() {
	reason := "joining the group " + s.cfg.Group
	if err := cmp.Or(s.rivals.current(), s.kafka.Err()); err != nil {
		reason += ": " + err.Error()
	}
	s.onReady(false, reason)
}

// generation reads the partitions that the group gave this instance, until it takes them away or
// the topics change. It returns the topics as they are then, and whether they are other ones than
// in seen.
func (s *source) generation(ctx context.Context, buffers *shards.Buffers, group *kafkaclient.Group, assignment *kafkaclient.Assignment,
	committed map[string]map[int]kafkaclient.Committed, seen map[string]int) (now map[string]int, other bool) {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fetcher := newFetcher(s.client, s.memory.arrived, s.cfg.Isolation == "read_uncommitted", s.cfg.Batch.Linger, s.log)
	fetcher.check = s.leaderCheck
	partitions := s.newPartitions(fetcher, assignment, committed)
	var wg sync.WaitGroup
	now = seen
	wg.Go(func() {
		defer cancel()
		s.beat(ctx, group, assignment)
	})
	// Topics may change more often than generations last, so that each looks for itself.
	wg.Go(func() {
		if now, other = s.watch(ctx, seen); ctx.Err() == nil {
			cancel()
		}
	})
	if s.findAdded(ctx, group, partitions) == nil {
		s.setPartitions(partitions, fetcher, true)
		s.log.Info("joined the group", "group", s.cfg.Group, "generation", assignment.Generation, "member", assignment.Member, "partitions", summary(partitions))
		wg.Go(func() { fetcher.run(ctx) })
		wg.Go(func() { fetcher.watchLeaders(ctx) })
		wg.Go(func() { s.watchRetention(ctx, partitions) })
		wg.Go(func() { s.watchMembers(ctx, group, assignment) })
		wg.Go(func() {
			for sleep(ctx, retentionInterval); ctx.Err() == nil; sleep(ctx, retentionInterval) {
				s.lookAtCommits(ctx, group, assignment, partitions)
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				sleep(ctx, commitInterval)
				s.commit(ctx, group, assignment, partitions)
			}
		})
		s.readAll(ctx, buffers, partitions)
	}
	wg.Wait()
	s.setPartitions(nil, nil, false)
	last, done := context.WithTimeout(context.WithoutCancel(outer), leaveTimeout)
	defer done()
	s.commit(last, group, assignment, partitions)
	return now, other
}

// summary names the first partitions, and the number of all.
func summary(partitions []*partition) string {
	const most = 20
	if len(partitions) <= most {
		return fmt.Sprint(partitions)
	}
	return fmt.Sprintf("%v and %d more", partitions[:most], len(partitions)-most)
}

// newPartitions makes the partitions of a generation.
func (s *source) newPartitions(f *fetcher, assignment *kafkaclient.Assignment, committed map[string]map[int]kafkaclient.Committed) []*partition {
	var partitions []*partition
	for _, topic := range slices.Sorted(maps.Keys(assignment.Partitions)) {
		for _, number := range assignment.Partitions[topic] {
			tp := topicPartition{topic, number}
			known, ok := committed[topic][number]
			if !ok {
				known.Offset = -1
			}
			p := newPartition(s, f, tp, known.Offset)
			s.mu.Lock()
			ours, was := s.committed[tp]
			s.mu.Unlock()
			p.foreign = known.Offset >= 0 && (!known.Ours || was && ours > known.Offset)
			if known.Ours {
				p.ours.Store(known.Offset)
			}
			partitions = append(partitions, p)
		}
	}
	// Each message costs the buffer something, so that many partitions send theirs less often.
	const perSecond = 1000
	s.tellEvery.Store(max(idleWait.Milliseconds(), int64(len(partitions))*1000/perSecond))
	return partitions
}

func (s *source) setPartitions(partitions []*partition, f *fetcher, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partitions, s.fetcher, s.running = partitions, f, running
}

// beat sends heartbeats until the generation is over: the group divides its partitions anew, or
// no heartbeat was answered for so long that Kafka has given the partitions to others.
func (s *source) beat(ctx context.Context, group *kafkaclient.Group, assignment *kafkaclient.Assignment) {
	last := time.Now()
	for wait := heartbeatEvery; ; {
		sleep(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		sent := time.Now()
		err := group.Heartbeat(ctx, assignment)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.kafka.Over()
			last, wait = sent, heartbeatEvery
			if group.OutOfDate() {
				s.log.Info("the buffer has other data than before; joining the group again, to tell its other members", "group", s.cfg.Group, "data", s.ledger())
				return
			}
		case kafkaclient.Lost(err):
			s.log.Info("the group divides its partitions anew", "group", s.cfg.Group, "generation", assignment.Generation, "because", err)
			return
		case time.Since(last) >= sessionTimeout:
			s.kafka.Note(fmt.Errorf("the place in the group is lost: %w", err))
			return
		default:
			s.kafka.Note(err)
			wait = heartbeatRetry
		}
	}
}

// watchMembers says when the group has members that are not of Spillway, or read for other data:
// the leader gives those nothing, unless it is of a version before, or not of Spillway.
func (s *source) watchMembers(ctx context.Context, group *kafkaclient.Group, assignment *kafkaclient.Assignment) {
	for ; ctx.Err() == nil; sleep(ctx, retentionInterval) {
		members, err := group.Members(ctx)
		if err != nil {
			s.log.Debug("cannot look at the group's members", "group", s.cfg.Group, "error", err)
			continue
		}
		if rival := group.Rival(members); rival != nil {
			s.rivals.note(s.log, rival)
			s.onReady(false, rival.Error())
		} else if s.rivals.over(s.log) {
			s.onReady(true, "")
		}
		foreign := members.Foreign
		s.mu.Lock()
		before := s.foreign
		s.foreign = foreign
		s.mu.Unlock()
		if len(foreign) > 0 && !slices.Equal(before, foreign) {
			s.log.Warn("the group is shared with consumers that are not of Spillway: the partitions that they are given are not read here; give the source, or them, a group of its own",
				"group", s.cfg.Group, "clients", strings.Join(foreign, ", "), "protocol", assignment.Protocol)
		}
		if len(foreign) == 0 && len(before) > 0 {
			s.log.Info("the group is no longer shared with other consumers", "group", s.cfg.Group)
		}
	}
}

// commit tells Kafka the safe offsets that rose.
func (s *source) commit(ctx context.Context, group *kafkaclient.Group, assignment *kafkaclient.Assignment, partitions []*partition) {
	offsets := make(map[string]map[int]int64)
	byName := make(map[topicPartition]*partition)
	for _, p := range partitions {
		if safe := p.safe.Load(); safe >= 0 && safe != p.committed.Load() {
			if offsets[p.topic] == nil {
				offsets[p.topic] = make(map[int]int64)
			}
			offsets[p.topic][p.number] = safe
			byName[p.topicPartition] = p
		}
	}
	if len(offsets) == 0 {
		return
	}
	err := group.Commit(ctx, assignment, offsets, func(topic string, number int, offset int64) {
		tp := topicPartition{topic, number}
		if p := byName[tp]; p != nil {
			p.committed.Store(offset)
			p.ours.Store(offset)
			s.mu.Lock()
			s.committed[tp] = offset
			s.mu.Unlock()
		}
	})
	switch {
	case err == nil:
		s.commits.Over()
	case kafkaclient.Lost(err): // the next generation commits
	case errors.Is(err, context.Canceled): // the generation is over; what is safe by then is committed after it
	default:
		s.commits.Note(err)
	}
}
