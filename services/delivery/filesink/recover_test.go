package filesink_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/localfs"
	"github.com/spillwayio/spillway/services/internal/config"
)

// leftoversIn makes files of a delivery that were written an hour ago.
func leftoversIn(t *testing.T, cfg config.HDFS, files map[string]string) (dir string, l *filesink.Leftovers) {
	t.Helper()
	dir = t.TempDir()
	for name, data := range files {
		at := filepath.Join(dir, name)
		old := time.Now().Add(-time.Hour)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(data), 0o644), os.Chtimes(at, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := localfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fs.Close() })
	cfg.URL, cfg.Path = "file://"+dir, "/logs"
	if cfg.Serializer == "" {
		cfg.Serializer, cfg.AppendNewline = "text", true
	}
	cfg.Compression = "none"
	if cfg.InUsePrefix+cfg.InUseSuffix == "" {
		cfg.InUseSuffix = ".tmp"
	}
	if l, err = filesink.NewLeftovers(&cfg, fs); err != nil {
		t.Fatal(err)
	}
	return dir, l
}

// TestLeftoversAreFound: by pattern, and only files in use with names of the delivery.
func TestLeftoversAreFound(t *testing.T) {
	_, l := leftoversIn(t, config.HDFS{FileSuffix: ".log", InUsePrefix: "_", InUseSuffix: ".tmp"}, map[string]string{
		"logs/a/_x.1-2.log.tmp": "", "logs/b/_x.3-4.log.tmp": "", "logs/b/_x.3-4.log.taken-5-6.tmp": "", "other/_9-1.log.tmp": "",
		"logs/a/x.1-1.log": "", "logs/a/_x.1-3.gz.tmp": "", "logs/a/_theirs.tmp": "", "logs/a/x.1-4.log.tmp": "", "logs/b/_x.3-4.log.taken-5-6.tail.tmp": ""})
	for _, test := range []struct{ patterns, want string }{
		{"/", "/logs/a/_x.1-2.log.tmp /logs/b/_x.3-4.log.taken-5-6.tmp /logs/b/_x.3-4.log.tmp /other/_9-1.log.tmp"},
		{"/logs/a", "/logs/a/_x.1-2.log.tmp"},
		{"/*/[ac]/*1-2*", "/logs/a/_x.1-2.log.tmp"},
		{"/logs/b /logs", "/logs/a/_x.1-2.log.tmp /logs/b/_x.3-4.log.taken-5-6.tmp /logs/b/_x.3-4.log.tmp"},
		{"/nowhere", ""},
	} {
		all, err := l.Find(t.Context(), strings.Fields(test.patterns))
		var paths []string
		for _, f := range all {
			paths = append(paths, f.Path)
			if strings.Contains(f.Path, "taken") && (f.Final != "/logs/b/x.3-4.log" || !slices.Equal(f.Keys, []string{"3-4", "5-6"})) {
				t.Errorf("%+v", f)
			}
		}
		slices.Sort(paths)
		if got := strings.Join(paths, " "); err != nil || got != test.want {
			t.Errorf("%s: %s, %v; want %s", test.patterns, got, err, test.want)
		}
	}
	for _, bad := range []string{"logs", "/[a"} {
		if _, err := l.Find(t.Context(), []string{bad}); err == nil || !strings.Contains(err.Error(), "want an absolute path") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestLeftoversAreFinished: lines are cut behind the last newline, Parquet needs its footer, and
// what is being written is left alone.
func TestLeftoversAreFinished(t *testing.T) {
	for name, test := range map[string]struct {
		cfg                config.HDFS
		data, want, result string
	}{
		"lines":   {config.HDFS{}, "a\nb\n", "a\nb\n", filesink.Finished},
		"torn":    {config.HDFS{}, "a\nb\nc" + strings.Repeat("c", 100<<10), "a\nb\n", filesink.FinishedCut},
		"one":     {config.HDFS{}, "abc", "abc", filesink.FinishedAsIs},
		"bytes":   {config.HDFS{Serializer: "text"}, "a\nb", "a\nb", filesink.FinishedAsIs},
		"empty":   {config.HDFS{}, "", "", filesink.RemovedAsEmpty},
		"parquet": {config.HDFS{Serializer: "parquet"}, "PAR1dataPAR1", "PAR1dataPAR1", filesink.Finished},
		"half":    {config.HDFS{Serializer: "parquet"}, "PAR1data", "", filesink.LeftIncomplete},
	} {
		t.Run(name, func(t *testing.T) {
			dir, l := leftoversIn(t, test.cfg, map[string]string{"logs/1-2.tmp": test.data})
			all, err := l.Find(t.Context(), []string{"/logs"})
			if err != nil || len(all) != 1 {
				t.Fatalf("%v, %v", all, err)
			}
			result, err := l.Finish(t.Context(), &all[0])
			if err != nil || result != test.result {
				t.Fatalf("%q, %v; want %q", result, err, test.result)
			}
			got, err := os.ReadFile(filepath.Join(dir, "logs/1-2"))
			if test.want != "" && (err != nil || string(got) != test.want) || test.want == "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(test.want))
			}
			if _, err := os.Stat(filepath.Join(dir, "logs/1-2.tmp")); (err == nil) != (result == filesink.LeftIncomplete) {
				t.Errorf("the file in use: %v", err)
			}
		})
	}
	dir, l := leftoversIn(t, config.HDFS{}, map[string]string{"1-2.tmp": "a\n", "3-4.tmp": "b\n", "3-4": "there"})
	now := time.Now()
	if err := os.Chtimes(filepath.Join(dir, "1-2.tmp"), now, now); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Finish(context.Background(), &filesink.Leftover{Path: "/1-2.tmp", Final: "/1-2"}); !errors.Is(err, filesink.ErrLive) {
		t.Errorf("a file that was written just now: %v", err)
	}
	if _, err := l.Finish(context.Background(), &filesink.Leftover{Path: "/3-4.tmp", Final: "/3-4"}); !errors.Is(err, filesink.ErrExist) {
		t.Errorf("a file whose final name is taken: %v", err)
	}
}
