package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestHDFSFileSystem runs the tests of package hdfsfs, which are skipped where there is no HDFS,
// against the real one: the conformance suite of all file systems, dead and living writers. It
// mostly waits for leases. TestSecureHDFS runs the one that needs Kerberos.
func TestHDFSFileSystem(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "test", "-count=1", "-v", "-skip", "AbsentKDC", "../delivery/filesink/hdfsfs")
	cmd.Env = append(os.Environ(), "E2E_HDFS=hdfs://"+stack.hdfs, "HADOOP_USER_NAME=hdfs")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if passed := strings.Count(string(out), "--- PASS: "); passed < 15 || strings.Contains(string(out), "--- SKIP: ") {
		t.Fatalf("%d tests passed, some were skipped:\n%s", passed, out)
	}
}

// TestPlacesThatAreRefused: an erasure-coded directory is refused by name, and one below it that
// is replicated is not; so is one whose files stay in memory. Nothing is left there.
func TestPlacesThatAreRefused(t *testing.T) {
	t.Parallel()
	dir := fmt.Sprintf("/e2e/erasure-coded-%d", time.Now().UnixNano())
	hdfsTool(t, "hdfs-ec", "-enablePolicy", "-policy", "XOR-2-1-1024k")
	hdfsTool(t, "hdfs-dfs", "-mkdir", "-p", dir+"/replicated")
	hdfsTool(t, "hdfs-ec", "-setPolicy", "-path", dir, "-policy", "XOR-2-1-1024k")
	hdfsTool(t, "hdfs-ec", "-setPolicy", "-path", dir+"/replicated", "-replicate")
	hdfsTool(t, "hdfs-dfs", "-mkdir", "-p", dir+"/replicated/memory")
	hdfsTool(t, "hdfs-storagepolicies", "-setStoragePolicy", "-path", dir+"/replicated/memory", "-policy", "LAZY_PERSIST")
	fs := newFS(t, config.HDFS{URL: "hdfs://" + stack.hdfs, User: "hdfs"})
	if err := fstest.WriteFile(t.Context(), fs, dir+"/new/file"); !errors.Is(err, filesink.ErrDenied) || !strings.Contains(err.Error(), "new is erasure-coded") {
		t.Errorf("write to an erasure-coded directory: %v", err)
	}
	if err := fstest.WriteFile(t.Context(), fs, dir+"/replicated/new/file", []byte("x")); err != nil {
		t.Errorf("write to a replicated directory below: %v", err)
	}
	if err := fstest.WriteFile(t.Context(), fs, dir+"/replicated/memory/file", []byte("x")); !errors.Is(err, filesink.ErrDenied) || !strings.Contains(err.Error(), "LAZY_PERSIST") {
		t.Errorf("write to a directory whose files stay in memory: %v", err)
	}
	for _, left := range []string{"/new/file", "/replicated/memory/file"} {
		if _, err := fs.Size(t.Context(), dir+left); !errors.Is(err, filesink.ErrNotExist) {
			t.Errorf("%s: %v, want that it is not there", left, err)
		}
	}
}
