package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestHDFSFileSystem runs the tests of package hdfsfs, which are skipped where there is no HDFS, against the real
// one: the conformance suite of all file systems, dead and living writers. It mostly waits for leases.
func TestHDFSFileSystem(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "test", "-count=1", "-v", "../delivery/filesink/hdfsfs")
	cmd.Env = append(os.Environ(), "E2E_HDFS=hdfs://"+stack.hdfs, "HADOOP_USER_NAME=hdfs")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if passed := strings.Count(string(out), "--- PASS: "); passed < 15 || strings.Contains(string(out), "--- SKIP: ") {
		t.Fatalf("%d tests passed, some were skipped:\n%s", passed, out)
	}
}
