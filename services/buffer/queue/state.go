package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// Sink state as operators see it. A delivery keeps an entry for each thing that is not finished,
// such as a file in use, and one that can never be finished would hold back the time of records
// for ever.

// StateView is an entry of sink state. Its Value must not be changed.
type StateView struct {
	Key      string
	Value    []byte
	HoldsMs  int64 // StateChange.HoldsMs
	SinceMs  int64 // when it was first put, in ms since the Unix epoch; 0 when an older version put it
	Session  uint64
	Consumer string
	Live     bool // else it waits for an heir
}

// State lists the sink state of a subscription, in no order. The lock is let go of in between:
// what changes hands meanwhile may be there twice, or not at all.
func (q *Queue) State(subscription string) ([]StateView, error) {
	q.mu.Lock()
	sub := q.subscription(subscription)
	if sub == nil {
		defer q.mu.Unlock()
		return nil, q.noSubscriptionLocked(subscription)
	}
	var sessions []*Session
	for _, s := range q.sessions {
		if s.sub == sub {
			sessions = append(sessions, s)
		}
	}
	q.mu.Unlock()
	var views []StateView
	for _, s := range sessions {
		var keys []string
		q.hold(func() bool {
			if q.sessions[s.ID] == s {
				keys = slices.Collect(maps.Keys(s.state))
			}
			return false
		})
		for some := range slices.Chunk(keys, q.holdItems) {
			q.hold(func() bool {
				for _, key := range some {
					if _, has := s.state[key]; has {
						views = append(views, s.stateView(key))
					}
				}
				return false
			})
		}
	}
	return views, nil
}

func (s *Session) stateView(key string) StateView {
	return StateView{Key: key, Value: s.state[key], HoldsMs: s.holds[key], SinceMs: s.since[key], Session: s.ID, Consumer: s.Consumer, Live: s.live}
}

// ForgetState deletes an entry of sink state that can never be finished, and returns it when that
// is durable. What it stood for stays as it is. The session that owns it ends, since its delivery
// goes by the entry: a new one is handed the rest.
func (q *Queue) ForgetState(ctx context.Context, subscription, key string) (forgotten StateView, err error) {
	why := fmt.Errorf("%w: %.200q", ErrStateForgotten, key)
	var ended *Session
	var leases []*lease
	err = q.manage(ctx, func() (*change, error) {
		sub := q.subscription(subscription)
		if sub == nil {
			return nil, q.noSubscriptionLocked(subscription)
		}
		var owner *Session
		for _, s := range q.sessions {
			if _, has := s.state[key]; has && s.sub == sub {
				owner = s
			}
		}
		if owner == nil {
			return nil, fmt.Errorf("%w: subscription %s has no %.200q", ErrNoState, subscription, key)
		}
		forgotten = owner.stateView(key)
		if owner.live { // what it acked already is written before, and nothing after
			ended, leases = owner, owner.leaveLocked(why)
		}
		c := &change{Subscription: sub.id, Forget: key}
		c.before = func(q *Queue) {
			for _, s := range slices.Clone(sub.sessions) { // it may have been handed over meanwhile
				if _, has := s.state[key]; has {
					for _, l := range s.leaveLocked(why) {
						if s.leases[l.id] == l && !l.acking { // not revoked meanwhile
							q.returnOneLocked(l, q.clock())
						}
						q.letOthersIn(1)
					}
					q.buryLocked(s)
				}
			}
		}
		return c, nil
	})
	if ended != nil {
		ended.giveUp(leases)
	}
	return forgotten, err
}

// forgetLocked applies the end of an entry.
func (q *Queue) forgetLocked(subscription int64, key string) {
	for _, s := range q.sessions {
		if s.sub.id != subscription {
			continue
		}
		s.deleteLocked(key)
		if !s.live && s.acking == 0 && len(s.state) == 0 {
			s.sub.orphans = slices.DeleteFunc(s.sub.orphans, func(x *Session) bool { return x == s })
			delete(q.sessions, s.ID)
		}
	}
}

// putLocked puts an entry, and keeps the time of the first one.
func (s *Session) putLocked(c *StateChange) {
	since, had := s.since[c.Key]
	s.deleteLocked(c.Key)
	s.state[c.Key] = c.Value
	s.sub.stateBytes += int64(stateSize(c.Key, c.Value))
	if c.HoldsMs != 0 {
		s.holds[c.Key] = c.HoldsMs
	}
	if !had {
		since = c.AtMs
	}
	if since != 0 {
		s.since[c.Key] = since
	}
}

func (s *Session) deleteLocked(key string) {
	s.freezeEntry(key)
	s.sub.stateBytes -= int64(stateSize(key, s.state[key]))
	delete(s.state, key)
	delete(s.holds, key)
	delete(s.since, key)
}

// inheritLocked takes over the entries of a dead session, which is removed.
func (s *Session) inheritLocked(dead *Session) {
	for key, value := range dead.state {
		s.deleteLocked(key)
		s.state[key] = value
		if ms, ok := dead.holds[key]; ok {
			s.holds[key] = ms
		}
		if ms, ok := dead.since[key]; ok {
			s.since[key] = ms
		}
		s.q.letOthersIn(1)
	}
}
