package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/delivery/filesink/hdfsfs"
	"github.com/spillwayio/spillway/services/delivery/manifest"
	"github.com/spillwayio/spillway/services/internal/config"
)

// compareFlags are the options of compare.
type compareFlags struct {
	config, as, below, inUseSuffix, output string
	all                                    bool

	paths                   bool
	agent, version, samples string
}

func newCompare() *cobra.Command {
	f := &compareFlags{}
	cmd := &cobra.Command{
		Use:   "compare MANIFEST DIRECTORY | compare --paths FLUME-FILE",
		Short: "Compares what a pipeline would have written with what Flume wrote",
		Long: `Reads the manifest that a delivery with manifest wrote beside Flume, and the files that Flume wrote: text,
compressed or not, SequenceFiles and Avro events. Prints for each directory whether both sides have the same
lines, and what is missing there (with the offsets in Kafka), missing here (with file and line), or doubled.

MANIFEST and DIRECTORY are directories of this machine, or hdfs://namenode:8020/directory. Directories in which
a file is still being written are not compared. The exit status is 0 when all that was compared is equal, 1 when
something differs or nothing could be compared, 2 when the command is wrong.

With --paths nothing is read but Flume's configuration: sample records are put through Flume's rules for
directories, and through those of the pipeline that import-flume makes of the file, or of --config. Samples are
made up, or lines of JSON: {"topic": "t", "timestamp": 1772323200000, "key": "k", "value": "v", "headers": {"h": "x"}}.

How to run a pipeline beside Flume: docs/flume.md.`,
		Example: `  spillway compare /var/lib/spillway/manifest hdfs://namenode:8020/user/flume
  spillway compare /var/lib/spillway/manifest hdfs://prod/user/flume -c spillway.yaml --as hdfs
  spillway compare --output json /var/lib/spillway/manifest /mnt/copy --below /user/flume
  spillway compare --paths flume.conf --samples records.json -c spillway.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case f.paths && len(args) != 1:
				return &usageError{errors.New("want one argument with --paths: Flume's file; see spillway compare --help")}
			case !f.paths && len(args) != 2:
				return &usageError{errors.New("want two arguments: the manifest and the directory that it is compared with; see spillway compare --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(f.output); err != nil {
				return err
			}
			if f.paths {
				return f.comparePaths(cmd, args[0])
			}
			return f.run(cmd, args[0], args[1])
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.paths, "paths", false, "compare the directories of sample records instead, by Flume's rules and the pipeline's")
	flags.StringVar(&f.agent, "agent", "", "with --paths: the agent, when the file has several")
	flags.StringVar(&f.version, "flume-version", "", "with --paths: the Flume that ran the file, 1.5 to 1.11")
	flags.StringVar(&f.samples, "samples", "", "with --paths: a file with a record of JSON on each line, or - for standard input")
	flags.StringVar(&f.below, "below", "", "the directory in the manifest that stands for DIRECTORY; without it the one of the same path")
	flags.StringVar(&f.inUseSuffix, "in-use-suffix", ".tmp", "what the names of files end with that are still being written in DIRECTORY")
	flags.StringVar(&f.as, "as", "", "connect to HDFS as this delivery of the --config does: user, Kerberos, conf_dir")
	flags.BoolVar(&f.all, "all", false, "list the directories that are equal, too, in the table")
	registerConfig(cmd, &f.config)
	registerOutput(cmd, &f.output)
	return cmd
}

func (f *compareFlags) run(cmd *cobra.Command, here, there string) error {
	log := slog.New(slog.DiscardHandler)
	hereTree, hereRoot, closeHere, err := f.open(here, log)
	if err != nil {
		return &usageError{err}
	}
	defer closeHere()
	thereTree, thereRoot, closeThere, err := f.open(there, log)
	if err != nil {
		return &usageError{err}
	}
	defer closeThere()
	below := f.below
	if below == "" {
		below = thereRoot
	}
	c := &manifest.Comparison{Here: hereTree, HereRoot: path.Join(hereRoot, below), There: thereTree, ThereRoot: thereRoot, InUseSuffix: f.inUseSuffix,
		Progress: progressTo(cmd.ErrOrStderr())}
	if !strings.HasPrefix(there, "hdfs:") {
		if f.below == "" {
			return &usageError{errors.New("DIRECTORY is one of this machine: want --below, the directory in the manifest that stands for it, such as /user/flume")}
		}
	}
	out := newComparisonOutput(cmd.OutOrStdout(), f.output == "json", f.all)
	if err := c.Run(cmd.Context(), out.add); err != nil {
		return err
	}
	return out.end()
}

// open opens an argument of the command as a tree and a directory in it.
func (f *compareFlags) open(at string, log *slog.Logger) (tree manifest.Tree, root string, done func(), err error) {
	rest, isHDFS := strings.CutPrefix(at, "hdfs://")
	if !isHDFS {
		absolute, err := filepath.Abs(strings.TrimPrefix(at, "file://"))
		if err != nil {
			return nil, "", nil, err
		}
		local, err := manifest.OpenLocal(absolute)
		if err != nil {
			return nil, "", nil, fmt.Errorf("open %s: %w", at, err)
		}
		return local, "/", func() { _ = local.Close() }, nil // only read from
	}
	authority, directory, _ := strings.Cut(rest, "/")
	h := &config.HDFS{URL: "hdfs://" + authority}
	if authority == "" {
		h.URL = "hdfs:///"
	}
	if f.as != "" {
		cfg, err := loadConfig(f.config)
		if err != nil {
			return nil, "", nil, err
		}
		d, err := cfg.ForDelivery(f.as)
		if err != nil {
			return nil, "", nil, err
		}
		if d.HDFS == nil || !strings.HasPrefix(d.HDFS.URL, "hdfs:") {
			return nil, "", nil, fmt.Errorf("--as %s: the delivery does not write to HDFS", f.as)
		}
		copied := *d.HDFS
		copied.URL = h.URL
		h = &copied
	}
	fs, err := hdfsfs.New(h, log)
	if err != nil {
		return nil, "", nil, err
	}
	return hdfsfs.Reader{FS: fs}, "/" + directory, func() { _ = fs.Close() }, nil // only read from
}

// progressEvery is how often a long comparison says how far it is.
const progressEvery = 10 * time.Second

// progressTo returns a function that says how far a comparison is, now and then.
func progressTo(w io.Writer) func(manifest.Progress) {
	last := time.Now()
	return func(p manifest.Progress) {
		if time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		fmt.Fprintf(w, "%d of %d directories compared, %d lines read\n", p.Done, p.Directories, p.Lines)
	}
}

// comparisonOutput prints the directories of a comparison.
type comparisonOutput struct {
	json    *json.Encoder
	table   *tabwriter.Writer
	w       io.Writer
	all     bool
	details []*manifest.Directory
	total   comparisonTotal
}

// comparisonTotal is what all directories come to.
type comparisonTotal struct {
	Equal        int   `json:"equal_directories"`
	Differ       int   `json:"different_directories"`
	InUse        int   `json:"directories_in_use"`
	Lines        int64 `json:"equal_lines"`
	MissingThere int64 `json:"missing_there"`
	MissingHere  int64 `json:"missing_here"`
	DoubledThere int64 `json:"doubled_there"`
}

func newComparisonOutput(w io.Writer, asJSON, all bool) *comparisonOutput {
	o := &comparisonOutput{w: w, all: all}
	if asJSON {
		o.json = json.NewEncoder(w)
		return o
	}
	o.table = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(o.table, "RECORDS HERE\tLINES HERE\tLINES THERE\tEQUAL\tMISSING THERE\tMISSING HERE\tDOUBLED THERE\t VERDICT\t DIRECTORY")
	return o
}

// maxDetails bounds the directories that differ whose details follow the table.
const maxDetails = 1000

func (o *comparisonOutput) add(d *manifest.Directory) error {
	t := &o.total
	switch d.Verdict {
	case manifest.Equal:
		t.Equal++
	case manifest.InUse:
		t.InUse++
	default:
		t.Differ++
	}
	t.Lines += d.Equal
	t.MissingThere += d.MissingThere
	t.MissingHere += d.MissingHere
	t.DoubledThere += d.DoubledThere
	if o.json != nil {
		return o.json.Encode(d)
	}
	if d.Verdict == manifest.Equal && !o.all {
		return nil
	}
	if d.Verdict == manifest.Differs && len(o.details) < maxDetails {
		o.details = append(o.details, d)
	}
	_, err := fmt.Fprintf(o.table, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t %s\t %s\n", d.Here.Records, d.Here.Lines, d.There.Lines, d.Equal, d.MissingThere, d.MissingHere, d.DoubledThere, d.Verdict, d.Path)
	return err
}

// end prints what comes behind the directories, and returns the verdict of all.
func (o *comparisonOutput) end() error {
	t := o.total
	if o.json != nil {
		if err := o.json.Encode(map[string]any{"total": t}); err != nil {
			return err
		}
		return t.verdict()
	}
	if t.Differ+t.InUse > 0 || o.all {
		if err := o.table.Flush(); err != nil {
			return err
		}
	}
	for _, d := range o.details {
		o.detail(d)
	}
	fmt.Fprintf(o.w, "%d directories are equal, %d differ, %d are in use; %d lines are equal, %d are missing there, %d are missing here, %d are doubled there\n",
		t.Equal, t.Differ, t.InUse, t.Lines, t.MissingThere, t.MissingHere, t.DoubledThere)
	return t.verdict()
}

// detail prints what differs in a directory.
func (o *comparisonOutput) detail(d *manifest.Directory) {
	fmt.Fprintf(o.w, "\n%s\n", d.Path)
	for _, trouble := range d.Trouble {
		fmt.Fprintf(o.w, "  cannot be read: %s\n", trouble)
	}
	const most = 20
	for i, m := range d.Missing {
		if i == most {
			fmt.Fprintf(o.w, "  missing there: %d more ranges; --output json has them\n", len(d.Missing)-most)
			break
		}
		fmt.Fprintf(o.w, "  missing there: %s/%d offsets %d to %d\n", m.Topic, m.Partition, m.First, m.Next-1)
	}
	if d.More {
		fmt.Fprintln(o.w, "  missing there: and more than could be listed")
	}
	for _, h := range d.Hours {
		if h.MissingThere > 0 {
			fmt.Fprintf(o.w, "  of the hour of %s: %d of %d records\n", h.Hour.Format("2006-01-02T15Z07"), h.MissingThere, h.Records)
		}
	}
	for _, l := range d.Unknown {
		fmt.Fprintf(o.w, "  missing here: %s line %d\n", l.File, l.Number)
	}
	if n := d.MissingHere - int64(len(d.Unknown)); n > 0 && len(d.Unknown) > 0 {
		fmt.Fprintf(o.w, "  missing here: %d more lines\n", n)
	}
	if d.DoubledThere > 0 {
		fmt.Fprintf(o.w, "  doubled there: %d lines\n", d.DoubledThere)
	}
	fmt.Fprintln(o.w)
}

func (t comparisonTotal) verdict() error {
	switch {
	case t.Differ > 0:
		return fmt.Errorf("%d of %d directories differ", t.Differ, t.Differ+t.Equal)
	case t.Equal == 0:
		return fmt.Errorf("nothing was compared: %d directories are in use, and there is no other", t.InUse)
	}
	return nil
}
