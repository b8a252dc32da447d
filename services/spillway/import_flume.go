package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/flume"
)

// importFlags are the options of import-flume.
type importFlags struct {
	agent, defaultFS, version string
	brokers                   []string
	file, output              string
	strict, env               bool
}

func newImportFlume() *cobra.Command {
	f := &importFlags{}
	cmd := &cobra.Command{
		Use:   "import-flume FILE",
		Short: "Writes the pipeline that does what a Flume agent does",
		Long: `Reads the configuration of an Apache Flume agent (a properties file, a Kubernetes ConfigMap that holds one, or
- for standard input) and writes the pipeline that does the same, commented, to standard output.

To standard error goes a report of every key of the file with its line: carried over, not needed, changed in
meaning, dropped as Flume itself drops it, or not supported, with what to do. The exit status is 0 only when
no key is unsupported; the pipeline is written all the same, if anything can be converted. Nothing is connected to.

The way from Flume to Spillway, step by step: docs/flume.md.`,
		Example: `  spillway import-flume flume.conf -o spillway.yaml
  spillway import-flume flume.conf --agent tier1 --brokers kafka:9092 --default-fs hdfs://namenode:8020`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("want one argument: Flume's file, or - for standard input; see spillway import-flume --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.agent, "agent", "", "the agent to import, when the file has several")
	flags.StringSliceVar(&f.brokers, "brokers", nil, "Kafka's bootstrap brokers, where the file names only ZooKeeper")
	flags.StringVar(&f.defaultFS, "default-fs", "", "the file system of paths that name none, such as hdfs://namenode:8020")
	flags.StringVar(&f.version, "flume-version", "", "the Flume that ran the file, 1.5 to 1.11; without it, told by the spelling of its keys")
	flags.StringVarP(&f.file, "write", "o", "", "write the pipeline to this file, which must not exist, instead of standard output")
	flags.StringVar(&f.output, "output", "table", "form of the report: table or json")
	flags.BoolVar(&f.strict, "strict", false, "fail when a key changes its meaning, too")
	flags.BoolVar(&f.env, "env", false, "put the environment's values in the place of ${NAME} and ${env:NAME}")
	return cmd
}

var flumeVersion = regexp.MustCompile(`^1\.([5-9]|1[01])(\.\d+)?$`)

func (f *importFlags) run(cmd *cobra.Command, path string) error {
	if err := checkOutput(f.output); err != nil {
		return err
	}
	if f.version != "" && !flumeVersion.MatchString(f.version) {
		return &usageError{fmt.Errorf("--flume-version %q: want 1.5 to 1.11", f.version)}
	}
	data, err := readInput(cmd.InOrStdin(), path)
	if err != nil {
		return &usageError{fmt.Errorf("read Flume's file: %w", err)}
	}
	options := flume.Options{Agent: f.agent, Brokers: f.brokers, DefaultFS: f.defaultFS, Version: f.version}
	if f.env {
		options.LookupEnv = os.LookupEnv
	}
	result, err := flume.Import(data, options)
	if err != nil {
		return &usageError{fmt.Errorf("%s: %w", path, err)}
	}
	if result.YAML != "" {
		if err := f.write(cmd.OutOrStdout(), result.YAML); err != nil {
			return err
		}
	}
	report := result.Report.WriteTable
	if f.output == "json" {
		report = result.Report.WriteJSON
	}
	if err := report(cmd.ErrOrStderr()); err != nil {
		return err
	}
	return f.verdict(result)
}

// readInput reads a file, or standard input for -. The bound is far above any agent's file.
func readInput(stdin io.Reader, path string) ([]byte, error) {
	in := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	const most = 16 << 20
	data, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(data) > most {
		err = fmt.Errorf("it has more than %d MiB, which no configuration has", most>>20)
	}
	return data, err
}

func (f *importFlags) write(stdout io.Writer, text string) error {
	if f.file == "" {
		_, err := io.WriteString(stdout, text)
		return err
	}
	file, err := os.OpenFile(f.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return &usageError{fmt.Errorf("write the pipeline: %w", err)}
	}
	_, err = io.WriteString(file, text)
	return errors.Join(err, file.Close())
}

// verdict returns what stands against using the pipeline as it is.
func (f *importFlags) verdict(r *flume.Result) error {
	var reasons []string
	if n := r.Report.Count(flume.Unsupported); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%d not supported", n))
	}
	if n := r.Report.Count(flume.Changed); n > 0 && f.strict {
		reasons = append(reasons, fmt.Sprintf("%d changed in meaning (--strict)", n))
	}
	switch {
	case r.YAML == "":
		return fmt.Errorf("no pipeline is written: %s; the report says what to do", strings.Join(reasons, ", "))
	case len(reasons) > 0:
		return fmt.Errorf("the pipeline does not do all that the agent does: %s; the report says what to do", strings.Join(reasons, ", "))
	}
	return nil
}
