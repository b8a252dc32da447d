package kafkastore

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// Inspector tries what the stores of a queue's shards need of the topics, without being the owner
// of any, and without disturbing owners.
type Inspector struct {
	t      Topics
	client *kafkaclient.Client
	log    *slog.Logger
	ids    map[string][16]byte
	found  []*Identity
}

// NewInspector returns an Inspector, which Close ends. It connects to nothing yet.
func NewInspector(t Topics, log *slog.Logger) *Inspector {
	return &Inspector{t: t, client: t.client(), log: log}
}

// Close ends the connections.
func (i *Inspector) Close() { i.client.Close() }

// Settings returns what is wrong with the topics: their partitions, replicas and settings. It
// needs DescribeConfigs. The other methods must come after it.
func (i *Inspector) Settings(ctx context.Context) (err error) {
	i.ids, err = i.t.check(ctx, i.client)
	return err
}

// Life returns the life of the queue that the topics are of, and refuses those of another queue.
func (i *Inspector) Life(ctx context.Context) (life string, err error) {
	if i.found, err = i.t.identities(ctx, i.client, i.ids, i.log); err != nil {
		return "", err
	}
	for shard, id := range i.found {
		if id == nil {
			i.found = nil
			return "", fmt.Errorf("%w: the journal of shard %d is empty", ErrIdentity, shard)
		}
		life = id.Life
	}
	return life, nil
}

// Write writes to each partition what owners pass over: the identity once more, and a record
// without a payload. It must come after Life.
func (i *Inspector) Write(ctx context.Context) error {
	return i.each(func(journal, payload *kafkaLog, id *Identity) error {
		body, err := json.Marshal(id)
		if err != nil {
			return err
		}
		f := frame{kind: identityFrame, flags: firstFlag | lastFlag, epoch: -1, value: appendEntry(nil, identityEntry, nil, body)}
		if _, err := journal.produce(ctx, []record{{f.key(), f.value}}); err != nil {
			return err
		}
		_, err = payload.produce(ctx, []record{{key: ownerKey}})
		return err
	})
}

// Delete deletes the records before the first one, which are none, of each partition. It must come
// after Life.
func (i *Inspector) Delete(ctx context.Context) error {
	return i.each(func(journal, payload *kafkaLog, _ *Identity) error {
		if err := mayTrim(ctx, journal, i.log); err != nil {
			return err
		}
		return mayTrim(ctx, payload, i.log)
	})
}

func (i *Inspector) each(f func(journal, payload *kafkaLog, id *Identity) error) error {
	for shard, id := range i.found {
		journal, payload := i.t.logs(i.client, i.ids, shard)
		if err := f(journal, payload, id); err != nil {
			return err
		}
	}
	return nil
}
