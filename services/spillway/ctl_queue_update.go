package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

func updateQueue(t *target) *cobra.Command {
	var bytes config.ByteSize
	var records int64
	cmd := &cobra.Command{
		Use:   "update QUEUE",
		Short: "Changes how much a queue may keep on disk, at once, also while it is full",
		Long: "Changes disk.bytes or disk.records of a running queue. It counts at once: an ingest that a full queue holds back goes on within\n" +
			"a second. It is kept over restarts until the pipeline's file says something else than it does now; so change the file, too.\n" +
			"With a file that names several buffers, each that has a part of the queue gets these bounds,\n" +
			"for each of its shards.",
		Example: "  spillway queues update logs --disk-bytes 200GiB",
		Args:    oneName("a queue"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, n := &spillwayv1.UpdateQueueRequest{Name: args[0]}, int64(bytes)
		if cmd.Flags().Changed("disk-bytes") {
			request.DiskBytes = &n
		}
		if cmd.Flags().Changed("disk-records") {
			request.DiskRecords = &records
		}
		if request.DiskBytes == nil && request.DiskRecords == nil {
			return &usageError{errors.New("nothing to change: give --disk-bytes or --disk-records")}
		}
		return t.run(func(c *call, _ []string) error {
			var all []*spillwayv1.Queue
			err := c.askEach(func(ctx context.Context) error {
				r, err := c.buffer().UpdateQueue(ctx, request)
				if err == nil {
					all = append(all, r.Queue)
				}
				return err
			})
			if len(all) == 0 {
				return err
			}
			return errors.Join(c.bounds(all), err)
		})(cmd, args)
	}
	cmd.Flags().TextVar(&bytes, "disk-bytes", config.ByteSize(0), "bound of what its files take, such as 200GiB")
	cmd.Flags().Int64Var(&records, "disk-records", 0, "bound of the records that are pending")
	return cmd
}

// bounds prints a queue after it was changed, at each buffer that has a part of it, and what to do
// for the change to last.
func (c *call) bounds(all []*spillwayv1.Queue) error {
	q := all[0]
	table := func(w io.Writer) {
		queueTable(w, all)
		if q.DiskBytesLimit != q.ConfiguredDiskBytes {
			fmt.Fprintf(w, "\nthe file says disk.bytes: %s; as soon as it says something else than that, the file counts again\n", config.ByteSize(q.ConfiguredDiskBytes/shardCount(q)))
		}
		if q.DiskRecordsLimit != q.ConfiguredDiskRecords {
			fmt.Fprintf(w, "\nthe file says disk.records: %d; as soon as it says something else than that, the file counts again\n", q.ConfiguredDiskRecords/shardCount(q))
		}
	}
	if len(c.all) > 1 {
		return c.show(&spillwayv1.ListQueuesResponse{Queues: all}, table)
	}
	return c.show(q, table)
}
