package rpc

import (
	"testing"
	"time"
)

// TestClientsGiveUpFirst: a client that nobody answers has ended its streams before the server
// takes it for dead, whenever the two heard of each other last: the server's ping may have been
// on its way when the network failed.
func TestClientsGiveUpFirst(t *testing.T) {
	if client, server := pingInterval+clientPatience, time.Duration(serverPatience); server < client+5*time.Second {
		t.Errorf("a client gives up within %s, the server after %s at the earliest", client, server)
	}
}
