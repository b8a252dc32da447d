// Command spillway moves records from Kafka to HDFS and to Kafka.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spillwayio/spillway/services/internal/config"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	return execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// execute runs a command and returns the exit status: 0, 1 after an error, 2 when the command line or
// the configuration is wrong.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
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
