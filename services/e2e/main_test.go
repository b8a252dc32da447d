package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What TestMain prepared, for all tests.
var (
	binary string // spillway
	stack  *realStack
)

const notRun = `
================================================================================
NOT RUN: the end-to-end tests (services/e2e), all of them.
%v
They need Java 17 to 23 and Maven. On Debian:

    apt-get install openjdk-17-jdk-headless maven

================================================================================
`

func TestMain(m *testing.M) {
	if dir := os.Getenv(reapEnv); dir != "" {
		os.Exit(reap(dir))
	}
	if err := chooseTests(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(prepareAndRun(m))
}

func prepareAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "spillway-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the stack:", err)
		return 1
	}
	reaper, err := startReaper(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the reaper:", err)
		return 1
	}
	code := runTests(m, dir)
	if err := reaper.finish(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the stack:", err)
		code = max(code, 1)
	}
	return code
}

func runTests(m *testing.M, dir string) int {
	s, err := startStack(filepath.Join(dir, "stack"))
	if errors.Is(err, errNoJava) {
		fmt.Fprintf(os.Stderr, notRun, err)
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start Kafka and HDFS:", err)
		return 1
	}
	stack = s
	binary = filepath.Join(dir, "spillway")
	build := exec.Command("go", "build", "-race=false", "-o", binary, "../spillway")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build spillway:", err)
		return 1
	}
	return m.Run()
}
