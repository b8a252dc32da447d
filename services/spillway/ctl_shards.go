package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

func newShards() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:   "shards [QUEUE]",
		Short: "Lists which buffer has which shard of a queue",
		Long: "Asks all buffers that the pipeline's file names which shards of its queues they have. A shard that is missing in the list\n" +
			"has no buffer: its source partitions wait. Where a group of Kafka gives shards to buffers, any buffer knows who has the others.",
		Example: "  spillway shards -c pipeline.yaml\n  spillway shards logs -b buffer-1:7400\n  spillway shards move logs 2 --to buffer-3:7400 -c pipeline.yaml",
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
			var all, heard []owned // heard: from others than the owner
			response := &spillwayv1.ListShardsResponse{}
			failed := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := spillwayv1.NewClusterServiceClient(c.conn).ListShards(ctx, &spillwayv1.ListShardsRequest{Queue: queue, PageToken: token, Others: true})
				for _, s := range page.GetShards() {
					if hearsay := s.State == "elsewhere" || s.State == "nobody's"; hearsay {
						heard = append(heard, owned{s, orNone(s.Owner)})
					} else {
						all = append(all, owned{s, c.address})
					}
				}
				return page.GetNextPageToken(), err
			})
			for _, s := range heard {
				if !slices.ContainsFunc(all, func(o owned) bool { return o.Queue == s.Queue && o.Number == s.Number }) {
					all = append(all, s)
				}
			}
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
	cmd.AddCommand(moveShard(t))
	cmd.ValidArgsFunction = t.complete(queueNames)
	return cmd
}

func moveShard(t *target) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "move QUEUE SHARD --to ADDRESS",
		Short: "Gives a shard to another buffer",
		Long: "Has the owner of a shard write what it must, and gives the shard to another buffer. It is not pinned there: the group goes on\n" +
			"to give each buffer as many as the others have. It is for queues with store.kafka.owners: group. The shard is not served for a second or two.",
		Example: "  spillway shards move logs 2 --to buffer-3:7400 -c pipeline.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return &usageError{errors.New("want a queue and the number of a shard")}
			}
			return nil
		},
		RunE: t.run(func(c *call, args []string) error {
			number, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil {
				return &usageError{fmt.Errorf("shard %q: want a number, from 0", args[1])}
			}
			if !config.IsAddress(to) {
				return &usageError{fmt.Errorf("--to %q: want host:port, the address that the other buffer advertises", to)}
			}
			response := &spillwayv1.MoveShardResponse{}
			err = c.askEach(func(ctx context.Context) (err error) {
				_, err = spillwayv1.NewClusterServiceClient(c.conn).MoveShard(ctx, &spillwayv1.MoveShardRequest{Queue: args[0], Number: int32(number), To: to})
				return err
			})
			if err != nil {
				return err
			}
			return c.show(response, func(w io.Writer) { fmt.Fprintf(w, "shard %d of %s is at %s\n", number, args[0], to) })
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "address that the other buffer advertises")
	cmd.ValidArgsFunction = t.complete(queueNames)
	return cmd
}

func newBuffers() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:     "buffers",
		Short:   "Drains a buffer: gives what it has to others",
		Long:    "Tells a buffer what to do with its shards, of queues with store.kafka.owners: group.",
		Example: "  spillway buffers drain -b buffer-1:7400",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	t.register(cmd)
	cmd.AddCommand(&cobra.Command{
		Use:   "drain",
		Short: "Gives the shards of a buffer to others, and has it given none",
		Long: "Has a buffer give its shards to others, as SIGTERM does, but goes on running: before it is taken away. It is given no shard\n" +
			"until it is started anew. It is refused when there is no other buffer.",
		Example: "  spillway buffers drain -b buffer-1:7400",
		Args:    noArgs,
		RunE: t.run(func(c *call, _ []string) error {
			if len(c.all) > 1 {
				return &usageError{fmt.Errorf("the file names %d buffers: say which one with -b HOST:PORT", len(c.all))}
			}
			var response *spillwayv1.DrainBufferResponse
			err := c.ask(func(ctx context.Context) (err error) {
				response, err = spillwayv1.NewClusterServiceClient(c.conn).DrainBuffer(ctx, &spillwayv1.DrainBufferRequest{})
				return err
			})
			if err != nil {
				return err
			}
			return c.show(response, func(w io.Writer) {
				row(w, "QUEUE", "SHARD", "IS NOW AT")
				for _, s := range response.Shards {
					row(w, s.Queue, shardOf(s.Number, s.Of), s.Owner)
				}
			})
		}),
	})
	return cmd
}

// shardOf names a shard. A buffer of a version before shards tells none.
func shardOf(number, of int32) string {
	if of <= 1 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", number, of)
}

// shardsOf names the shards of a queue that a buffer has.
func shardsOf(q *spillwayv1.Queue) string {
	if len(q.ShardsHere) == 0 {
		return shardOf(q.Shard, q.Shards)
	}
	var all []string
	for _, s := range q.ShardsHere {
		all = append(all, strconv.Itoa(int(s.Number)))
	}
	return fmt.Sprintf("%s of %d", strings.Join(all, ","), q.Shards)
}

// shardCount is how many shards of a queue a buffer has, whose bounds are added up.
func shardCount(q *spillwayv1.Queue) int64 { return int64(max(len(q.GetShardsHere()), 1)) }

// buffer is the admin API of the buffer that is asked now.
func (c *call) buffer() spillwayv1.BufferAdminServiceClient {
	return spillwayv1.NewBufferAdminServiceClient(c.conn)
}
