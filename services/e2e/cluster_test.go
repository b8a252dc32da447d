package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cluster is an HDFS that deploy/stack started.
type cluster struct {
	run  string // STACK_RUN
	port int
	env  []string // what it was started with
}

// hdfsPorts finds a port of a NameNode, such that those of all its servers are free.
func hdfsPorts(datanodes int) (int, error) {
	distances := []int{0, 10, 10000, 10010, 11000}
	for i := range datanodes {
		at := 11100 + 100*i
		distances = append(distances, at, at+30, at+60)
	}
	return freeBase(13000, 14900, distances...)
}

// newCluster starts an HDFS without permissions for one test, with more in the environment.
func newCluster(t testing.TB, datanodes int, env ...string) *cluster {
	t.Helper()
	port, err := hdfsPorts(datanodes)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{run: stack.run, port: port, env: append(env, "HDFS_PERMISSIONS=false")}
	t.Cleanup(func() {
		if err := c.script("hdfs-stop", "--wipe"); err != nil {
			t.Errorf("stop the HDFS of the test: %v", err)
		}
	})
	if err := c.script("hdfs-start", strconv.Itoa(datanodes), strconv.Itoa(port)); err != nil {
		t.Fatal(err)
	}
	return c
}

// file is the path of something that the scripts keep.
func (c *cluster) file(name string) string {
	return filepath.Join(c.run, fmt.Sprintf("hdfs-%d", c.port), name)
}

func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(scripts, name), args...)
	cmd.Env = append(append(os.Environ(), "STACK_RUN="+c.run, fmt.Sprintf("HDFS_PORT=%d", c.port)), c.env...)
	return cmd
}

func (c *cluster) script(name string, args ...string) error {
	if out, err := c.command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// tool runs one of Hadoop's tools and returns its stdout.
func (c *cluster) tool(t testing.TB, tool string, args ...string) []byte {
	t.Helper()
	cmd := c.command(tool, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// awaitDataNodes returns when the NameNode counts n live ones.
func (c *cluster) awaitDataNodes(t testing.TB, n int) {
	t.Helper()
	url := fmt.Sprintf("http://127.0.0.1:%d/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState", c.port+10000)
	eventually(t, time.Minute, fmt.Sprintf("%d live DataNodes", n), func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var state struct {
			Beans []struct{ NumLiveDataNodes int }
		}
		if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
			return err
		}
		if len(state.Beans) != 1 || state.Beans[0].NumLiveDataNodes != n {
			return fmt.Errorf("the NameNode says %+v", state)
		}
		return nil
	})
}

// files lists the files below a directory with Hadoop's own tool.
func (c *cluster) files(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	for line := range strings.Lines(string(c.tool(t, "hdfs-dfs", "-ls", "-R", dir))) {
		if fields := strings.Fields(line); len(fields) == 8 && strings.HasPrefix(fields[0], "-") {
			files = append(files, fields[7])
		}
	}
	return files
}

// tally reads all files below a directory again, and fails when one of them is in use.
func (c *cluster) tally(t testing.TB, dir string, n int) *tally {
	t.Helper()
	y := newTally(n)
	files := c.files(t, dir)
	for _, f := range files {
		if !strings.HasSuffix(f, ".log") && path.Base(f) != "_SUCCESS" {
			t.Errorf("%s is not final: %s", f, c.tool(t, "hdfs-dfs", "-ls", f)) // with its length
		}
	}
	if len(files) > 0 {
		for line := range bytes.Lines(c.tool(t, "hdfs-dfs", append([]string{"-cat"}, files...)...)) {
			y.add(bytes.TrimSuffix(line, []byte("\n")))
		}
	}
	t.Logf("%d files in %s", len(files), dir)
	return y
}

// hdfsScript runs one of the stack's scripts on the HDFS that is there for all tests, as do the
// next ones.
func hdfsScript(name string, args ...string) error { return stack.cluster.script(name, args...) }

func hdfsTool(t testing.TB, tool string, args ...string) []byte {
	t.Helper()
	return stack.cluster.tool(t, tool, args...)
}

func hdfsFiles(t testing.TB, dir string) []string {
	t.Helper()
	return stack.cluster.files(t, dir)
}

func tallyHDFS(t testing.TB, dir string, n int) *tally {
	t.Helper()
	return stack.cluster.tally(t, dir, n)
}
