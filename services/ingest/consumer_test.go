package ingest

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestFormerMemberLeaves: after an outage of the broker an instance joins the group as another member. The one that it was
// before is taken out, or the group would wait for it.
func TestFormerMemberLeaves(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	var away atomic.Bool
	var member atomic.Value
	left := make(chan string, 10)
	gone := errors.New("the broker is away")
	for _, key := range []kmsg.Key{kmsg.Heartbeat, kmsg.FindCoordinator, kmsg.LeaveGroup} {
		kafka.fake.ControlKey(key.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			kafka.fake.KeepControl()
			if away.Load() {
				return nil, gone, true
			}
			switch r := r.(type) {
			case *kmsg.HeartbeatRequest:
				member.Store(r.MemberID)
			case *kmsg.LeaveGroupRequest:
				for _, m := range r.Members {
					left <- m.MemberID
				}
			}
			return nil, nil, false
		})
	}
	s := kafka.ingest(buffer).sources[0]
	waitFor(t, "a heartbeat", func() bool { return member.Load() != nil })
	former := member.Load().(string)
	away.Store(true)
	waitFor(t, "the outage to be noticed", func() bool { return s.kafka.Err() != nil })
	away.Store(false)
	if m := <-left; m != former {
		t.Errorf("%q left the group, want %q", m, former)
	}
	kafka.one(topic, 0, "after")
	buffer.has(topic, 0, "after")
}
