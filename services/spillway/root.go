package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/internal/telemetry"
)

// logFlags say how a service logs.
type logFlags struct{ level, format string }

func (f *logFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.level, "log-level", cmp.Or(os.Getenv("SPILLWAY_LOG_LEVEL"), "info"), "debug, info, warn or error; or $SPILLWAY_LOG_LEVEL")
	cmd.Flags().StringVar(&f.format, "log-format", cmp.Or(os.Getenv("SPILLWAY_LOG_FORMAT"), "text"), "text or json; or $SPILLWAY_LOG_FORMAT")
}

// logger logs to cmd's stderr.
func (f *logFlags) logger(cmd *cobra.Command) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, &usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", f.level)}
	}
	if f.format != "text" && f.format != "json" {
		return nil, &usageError{fmt.Errorf("--log-format %q: want text or json", f.format)}
	}
	return telemetry.NewLogger(cmd.ErrOrStderr(), f.level, f.format == "json"), nil
}

// serviceFlags are those of the commands that run a service.
type serviceFlags struct {
	logFlags
	config      string
	stopTimeout time.Duration
}

func (f *serviceFlags) register(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.stopTimeout, "stop-timeout", stopTimeout, "how long draining may take after SIGTERM before the process ends at once")
	f.logFlags.register(cmd)
	registerConfig(cmd, &f.config)
}

// logger checks the flags that are not about the log, too.
func (f *serviceFlags) logger(cmd *cobra.Command) (*slog.Logger, error) {
	if f.stopTimeout < time.Second {
		return nil, &usageError{fmt.Errorf("--stop-timeout %s: want 1s or more", f.stopTimeout)}
	}
	return f.logFlags.logger(cmd)
}

func registerConfig(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", os.Getenv("SPILLWAY_CONFIG"), "file of the pipeline (YAML; docs/configuration.md); or $SPILLWAY_CONFIG")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err)
	}
}

func registerOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table or json")
}

func checkOutput(output string) error {
	if output != "table" && output != "json" {
		return &usageError{fmt.Errorf("--output %q: want table or json", output)}
	}
	return nil
}

func checkTimeout(timeout time.Duration) error {
	if timeout <= 0 {
		return &usageError{fmt.Errorf("--timeout %s: want more than 0, as in 10s", timeout)}
	}
	return nil
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "spillway",
		Short: "Moves records from Kafka to HDFS and to Kafka",
		Long: `Spillway moves records from Kafka to HDFS and to Kafka. A durable queue stands between, which
spills from memory to disk, so that a destination that is away neither loses records nor holds up the others.

Three services make a pipeline, and one file describes it:

  spillway buffer -c pipeline.yaml          the queue
  spillway ingest -c pipeline.yaml          Kafka → buffer
  spillway delivery NAME -c pipeline.yaml   buffer → delivery.NAME of the file

On one machine, all of them in one process: spillway run -c pipeline.yaml

To see all of it at work with nothing installed: spillway dev`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return &usageError{fmt.Errorf("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))}
			}
			return &usageError{fmt.Errorf("unknown command %q; see spillway --help", args[0])}
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetVersionTemplate(versionText() + "\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.CompletionOptions.DisableDefaultCmd = true // newCompletion is in its place
	root.AddCommand(newBuffer(), newIngest(), newDelivery(), newRun(), newDev(), newCheck(), newConfig(), newImportFlume(), newCompare(), newAudit(), newQueues(), newShards(), newBuffers(), newSubscriptions(), newSessions(), newDeadLetters(), newReplay(), newTap(), newSources(), newDeliveries(), newTop(), newInspect(), newGenerate(), newHealth(), newStore(), newFiles(), newDoctor(), newReload(), newContext(), newCompletion(), newCertificates(), newVersion())
	return root
}

// noArgs refuses arguments. cobra.NoArgs would report one as an unknown command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &usageError{fmt.Errorf("%s takes no argument, and %q is one; see %[1]s --help", cmd.CommandPath(), args[0])}
	}
	return nil
}

func newVersion() *cobra.Command {
	var sbom bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Prints the version, or what the program is made of",
		Long:    "Prints the version. With --sbom it prints a software bill of materials instead: the modules that were linked, with their\nversions and sums, as CycloneDX 1.5. Scanners for known weaknesses read it.",
		Example: "  spillway version\n  spillway version --sbom > spillway.cdx.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if sbom {
				return writeSBOM(cmd.OutOrStdout())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		},
	}
	cmd.Flags().BoolVar(&sbom, "sbom", false, "print a software bill of materials (CycloneDX)")
	return cmd
}

func versionText() string {
	return fmt.Sprintf("spillway %s (%s %s/%s)", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// builtFrom is the version that the linker was told (deploy/Dockerfile), as an image is built
// without .git.
var builtFrom string

// version is what the linker was told, or the module's, or the commit it was built from.
func version() string {
	if builtFrom != "" {
		return builtFrom
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			version = s.Value
		}
	}
	return version
}
