package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

func newShards() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:   "shards [QUEUE]",
		Short: "Lists which buffer has which shard of a queue",
		Long: "Asks all buffers that the pipeline's file names which shards of its queues they have. A shard that is missing in the list\n" +
			"has no buffer: its source partitions wait.",
		Example: "  spillway shards -c pipeline.yaml\n  spillway shards logs -b buffer-1:7400",
		Args:    atMostOneName("a queue"),
		RunE: t.run(func(c *call, args []string) error {
			queue := ""
			if len(args) == 1 {
				queue = args[0]
			}
			type owned struct {
				*spillwayv1.Shard
				address string
			}
			var all []owned
			response := &spillwayv1.ListShardsResponse{}
			failed := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := spillwayv1.NewClusterServiceClient(c.conn).ListShards(ctx, &spillwayv1.ListShardsRequest{Queue: queue, PageToken: token})
				for _, s := range page.GetShards() {
					all = append(all, owned{s, c.address})
				}
				return page.GetNextPageToken(), err
			})
			slices.SortStableFunc(all, func(a, b owned) int {
				return cmp.Or(cmp.Compare(a.Queue, b.Queue), cmp.Compare(a.Number, b.Number))
			})
			if failed != nil && len(all) == 0 {
				return failed
			}
			for _, s := range all {
				response.Shards = append(response.Shards, s.Shard)
			}
			return cmp.Or(c.show(response, func(w io.Writer) {
				row(w, "QUEUE", "SHARD", "BUFFER", "STATE")
				for _, s := range all {
					row(w, s.Queue, shardOf(s.Number, s.Of), s.address, s.State)
				}
			}), failed)
		}),
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(queueNames)
	return cmd
}

// shardOf names a shard. A buffer of a version before shards tells none.
func shardOf(number, of int32) string {
	if of <= 1 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", number, of)
}

// buffer is the admin API of the buffer that is asked now.
func (c *call) buffer() spillwayv1.BufferAdminServiceClient {
	return spillwayv1.NewBufferAdminServiceClient(c.conn)
}

// addSubscriptions adds what one buffer tells of subscriptions to what others told.
func addSubscriptions(sums, more []*spillwayv1.Subscription) []*spillwayv1.Subscription {
	for _, s := range more {
		if i := slices.IndexFunc(sums, func(sum *spillwayv1.Subscription) bool { return sum.Name == s.Name }); i >= 0 {
			sums[i] = addSubscription(sums[i], s)
		} else {
			sums = append(sums, s)
		}
	}
	return sums
}

// addSubscription adds what one buffer tells of a subscription to the sum of others: numbers are
// added up, the oldest counts, and one that is paused anywhere is.
func addSubscription(sum, s *spillwayv1.Subscription) *spillwayv1.Subscription {
	if sum == nil {
		return s
	}
	replay := addReplay(sum.Replay, s.Replay)
	add(sum, s)
	sum.Replay, sum.Paused = replay, sum.Paused || s.Paused
	if s.OldestPendingAge.AsDuration() > sum.OldestPendingAge.AsDuration() {
		sum.OldestPendingAge = s.OldestPendingAge
	}
	return sum
}

// addQueue adds what one buffer tells of a queue to the sum of others.
func addQueue(sum, q *spillwayv1.Queue) *spillwayv1.Queue {
	if sum == nil {
		return q
	}
	shards := sum.Shards
	add(sum, q)
	sum.Shard, sum.Shards = 0, shards
	return sum
}

// add adds the 64- and 32-bit numbers of m to those of sum.
func add(sum, m proto.Message) {
	to := sum.ProtoReflect()
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() || f.IsMap():
		case f.Kind() == protoreflect.Int64Kind:
			to.Set(f, protoreflect.ValueOfInt64(to.Get(f).Int()+v.Int()))
		case f.Kind() == protoreflect.Int32Kind:
			to.Set(f, protoreflect.ValueOfInt32(int32(to.Get(f).Int()+v.Int())))
		}
		return true
	})
}
