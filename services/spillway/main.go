// Command spillway moves records from Kafka to HDFS and to Kafka.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc/grpclog"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/telemetry"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := notify(context.Background())
	defer stop()
	// A service does not wait for whoever reads its log, not even to end.
	stderr := telemetry.NewLines(os.Stderr)
	defer stderr.Flush(time.Second)
	log.SetOutput(stderr) // of the libraries
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, stderr))
	return execute(ctx, os.Args[1:], os.Stdout, stderr)
}

// execute runs a command and returns the exit status: 0, 1 after an error, 2 when the command
// line or the configuration is wrong.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if status := new(statusError); errors.As(err, &status) {
		return status.status
	}
	var problems config.Problems
	if errors.As(err, &problems) && len(problems) > 1 {
		fmt.Fprintf(stderr, "spillway: the configuration has %d problems\n%v\n", len(problems), problems)
	} else {
		fmt.Fprintln(stderr, "spillway:", err)
	}
	if usage := new(usageError); errors.As(err, &usage) {
		return 2
	}
	return 1
}

// usageError is the user's to mend.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// statusError ends a command that has said all there is to say, with an exit status of its own.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("exit status %d", e.status) }
