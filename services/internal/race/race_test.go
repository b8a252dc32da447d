package race

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestApartIsFound: the Makefile finds each test that calls Apart by the line before.
func TestApartIsFound(t *testing.T) {
	begin := regexp.MustCompile(`^func Test[A-Za-z0-9]+\(t \*testing\.T\) \{$`)
	found := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") || d.Name() == "race_test.go" {
			return err
		}
		text, err := os.ReadFile(path)
		before := ""
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "race.Apart(") {
				found++
				if !begin.MatchString(before) {
					t.Errorf("%s calls race.Apart, and not as the first statement of a test: make test-apart does not run it", path)
				}
			}
			before = strings.TrimSuffix(line, "\n")
		}
		return err
	})
	if err != nil || found == 0 {
		t.Errorf("%d calls of race.Apart, %v", found, err)
	}
}
