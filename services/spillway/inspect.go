package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
)

// errDamaged ends an inspection that found damage. What there is to say is printed already.
var errDamaged = errors.New("the data is damaged; --repair moves what is damaged aside")

// queueReport is what inspect says of one queue.
type queueReport struct {
	Queue         string                    `json:"queue"`
	Directory     string                    `json:"directory"`
	Segments      []nutsstore.SegmentReport `json:"segments"`
	Subscriptions []subscriptionReport      `json:"subscriptions"`
	Partitions    []partitionReport         `json:"partitions"`
	Sessions      []sessionReport           `json:"sessions"`
	Damage        []nutsstore.Damage        `json:"damage"`
	WrongFiles    []string                  `json:"wrong_files"`
	LedgerError   string                    `json:"ledger_error,omitempty"`
	Quarantine    string                    `json:"quarantine,omitempty"` // what a repair moved aside

	damaged bool
}

type subscriptionReport struct {
	Name           string   `json:"name"`
	Topics         []string `json:"topics"`
	Required       bool     `json:"required"`
	Paused         bool     `json:"paused"`
	PendingRecords int64    `json:"pending_records"`
	PendingBytes   int64    `json:"pending_bytes"`
	Deferred       int64    `json:"deferred_offsets"`
}

type partitionReport struct {
	Subscription string           `json:"subscription"`
	Cluster      string           `json:"cluster"`
	Topic        string           `json:"topic"`
	Partition    int32            `json:"partition"`
	Incarnation  uint32           `json:"incarnation"`
	Start        int64            `json:"start_offset"`
	Settled      int64            `json:"settled_offset"`
	Appended     int64            `json:"appended_offset"`
	Safe         int64            `json:"safe_offset"`
	Outcomes     map[string]int64 `json:"outcomes"`
	Pending      int64            `json:"pending_offsets"`
	Holes        int64            `json:"hole_offsets"`
}

type sessionReport struct {
	ID           uint64 `json:"id"`
	Subscription string `json:"subscription"`
	Consumer     string `json:"consumer"`
	StateEntries int    `json:"state_entries"`
}

func newInspect() *cobra.Command {
	var output string
	var repair bool
	cmd := &cobra.Command{
		Use:   "inspect DIR",
		Short: "Reads the data directory of a stopped buffer: segments, ledger, sessions, damage",
		Long: `Reads every byte below a stopped buffer's data_dir, or below the directory of one of its queues, and changes nothing.
It prints the segments, what the ledger says of each subscription and partition, the sessions whose sink state waits
for an heir, and all damage. The exit status is 1 when there is any, other than the unfinished write that a crash leaves.

With --repair, damaged segments are written anew without what is damaged. The files as they were are moved to
DIR/QUEUE/quarantine, with a note of what was lost. What was lost is read from Kafka again when the buffer runs,
as far as Kafka still has it.`,
		Example: "  spillway inspect /var/lib/spillway\n  spillway inspect /var/lib/spillway/logs --output json\n  spillway inspect /var/lib/spillway --repair",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("want one argument: the data directory of a buffer, or that of a queue in it")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			dirs, err := queueDirs(args[0])
			if err != nil {
				return err
			}
			var reports []queueReport
			var errs []error
			for _, dir := range dirs {
				report, err := inspectQueue(dir, repair)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				reports = append(reports, report)
				if (report.damaged || report.LedgerError != "") && report.Quarantine == "" {
					errs = append(errs, fmt.Errorf("queue %s: %w", report.Queue, errDamaged))
				}
			}
			if output == "json" {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"queues": reports})
			} else {
				err = printInspection(cmd.OutOrStdout(), reports)
			}
			return errors.Join(append([]error{err}, errs...)...)
		},
	}
	registerOutput(cmd, &output)
	cmd.Flags().BoolVar(&repair, "repair", false, "move what is damaged to DIR/QUEUE/quarantine")
	return cmd
}

// queueDirs are the directories of queues that dir is or has.
func queueDirs(dir string) ([]string, error) {
	if nutsstore.IsStore(dir) {
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read data directory: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		if sub := filepath.Join(dir, e.Name()); e.IsDir() && nutsstore.IsStore(sub) {
			dirs = append(dirs, sub)
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s: neither the data directory of a buffer nor that of a queue", dir)
	}
	return dirs, nil
}

func inspectQueue(dir string, repair bool) (r queueReport, err error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return r, fmt.Errorf("inspect %s: %w", dir, err)
	}
	in, err := nutsstore.Inspect(abs)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	r = queueReport{Queue: filepath.Base(abs), Directory: abs, Damage: in.Damage, WrongFiles: in.Files, damaged: in.Damaged()}
	if err := r.readLedger(in); err != nil {
		r.LedgerError = err.Error()
	}
	in.CountLive()
	r.Segments = in.Segments
	if repair {
		r.Quarantine, err = in.Repair()
	}
	return r, err
}

// readLedger lets a queue rebuild its ledger. The queue is drained at once, into nothing, so that
// it releases what everyone has settled.
func (r *queueReport) readLedger(in *nutsstore.Inspection) error {
	q, err := queue.Open(queue.Config{Log: slog.New(slog.DiscardHandler)}, in.Open)
	if err != nil {
		return err
	}
	for _, s := range q.Subscriptions() {
		r.Subscriptions = append(r.Subscriptions, subscriptionReport{Name: s.Name, Topics: s.Topics, Required: s.Required, Paused: s.Paused,
			PendingRecords: s.PendingRecords, PendingBytes: s.PendingBytes, Deferred: s.Deferred})
	}
	accounts, err := q.Audit("")
	if err != nil {
		return err
	}
	for _, a := range accounts {
		outcomes := make(map[string]int64)
		for o, n := range a.Outcomes {
			outcomes[o.String()] = n
		}
		r.Partitions = append(r.Partitions, partitionReport{Subscription: a.Subscription, Cluster: a.Partition.Cluster, Topic: a.Partition.Topic, Partition: a.Partition.Number,
			Incarnation: a.Partition.Incarnation, Start: a.Start, Settled: a.Settled, Appended: a.Appended, Safe: a.Safe, Outcomes: outcomes, Pending: a.Pending, Holes: a.Holes})
	}
	for _, s := range q.Sessions() {
		r.Sessions = append(r.Sessions, sessionReport{ID: s.ID, Subscription: s.Subscription, Consumer: s.Consumer, StateEntries: s.StateEntries})
	}
	ended, end := context.WithCancel(context.Background())
	end()
	return q.Run(ended)
}

func printInspection(out io.Writer, reports []queueReport) error {
	for i, r := range reports {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "queue %s in %s\n", r.Queue, r.Directory)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "\nSEGMENT\tDISK\tDATA\tGROUPS\tFROM\tTO\tCHANGES\tSNAPSHOTS\tBATCHES\tBYTES\tLIVE\tLIVE BYTES\tSEALED")
		for _, s := range r.Segments {
			fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%t\n", s.Segment, s.DiskBytes, s.DataBytes, s.Groups, s.FirstGroup, s.LastGroup,
				s.Changes, s.Snapshots, s.Batches, s.BatchBytes, s.LiveBatches, s.LiveBytes, s.Sealed)
		}
		if len(r.Subscriptions) > 0 {
			fmt.Fprintln(w, "\nSUBSCRIPTION\tTOPICS\tREQUIRED\tPAUSED\tPENDING RECORDS\tPENDING BYTES\tDEFERRED")
		}
		for _, s := range r.Subscriptions {
			fmt.Fprintf(w, "%s\t%s\t%t\t%t\t%d\t%d\t%d\n", s.Name, strings.Join(s.Topics, ","), s.Required, s.Paused, s.PendingRecords, s.PendingBytes, s.Deferred)
		}
		if len(r.Partitions) > 0 {
			fmt.Fprintln(w, "\nSUBSCRIPTION\tTOPIC\tPARTITION\tFROM\tTO\tSETTLED\tSAFE\tPENDING\tHOLES")
		}
		for _, p := range r.Partitions {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", p.Subscription, p.Topic, p.Partition, p.Start, p.Appended, p.Settled, p.Safe, p.Pending, p.Holes)
		}
		if len(r.Sessions) > 0 {
			fmt.Fprintln(w, "\nSESSION\tSUBSCRIPTION\tCONSUMER\tSTATE ENTRIES")
		}
		for _, s := range r.Sessions {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\n", s.ID, s.Subscription, s.Consumer, s.StateEntries)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(out)
		for _, d := range r.Damage {
			word := "damage"
			if d.Unfinished {
				word = "unfinished write"
			}
			fmt.Fprintf(out, "%s: %s\n", word, d)
		}
		for _, name := range r.WrongFiles {
			fmt.Fprintf(out, "damage: file %s belongs to nothing, or is wrong\n", name)
		}
		if r.LedgerError != "" {
			fmt.Fprintf(out, "damage: the ledger cannot be rebuilt: %s\n", r.LedgerError)
		}
		switch {
		case r.Quarantine != "":
			fmt.Fprintf(out, "repaired; what was damaged is in %s\n", r.Quarantine)
		case len(r.Damage)+len(r.WrongFiles) == 0 && r.LedgerError == "":
			fmt.Fprintln(out, "no damage")
		}
	}
	return nil
}
