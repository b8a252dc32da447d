package owners

import (
	"time"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// GroupOf is the name of the group whose members divide the shards of a queue that is kept in
// topics of a name.
func GroupOf(topics string) string { return "spillway-buffers/" + topics }

// NewGroup is a membership in the group of buffers that keep a queue in topics of a name. A
// sessionTimeout of 0 is DefaultSessionTimeout; give the member the same.
func NewGroup(client *kafkaclient.Client, topics string, sessionTimeout time.Duration) *kafkaclient.Membership {
	if sessionTimeout == 0 {
		sessionTimeout = DefaultSessionTimeout
	}
	// Members join again within heartbeatEvery: those that take longer are dead.
	return kafkaclient.NewMembership(client, kafkaclient.MembershipConfig{Group: GroupOf(topics), Type: ProtocolType, Protocols: []string{Protocol},
		SessionTimeout: sessionTimeout, RebalanceTimeout: sessionTimeout})
}
