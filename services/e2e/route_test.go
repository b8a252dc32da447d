package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// newRoute is a pipeline without HDFS: from one cluster to another.
func newRoute(t testing.TB, target broker, edit ...string) *pipeline {
	t.Helper()
	p := newPipeline(t, target, edit...)
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	whole := string(text)
	before, rest, _ := strings.Cut(whole, "  k:\n")
	_, after, _ := strings.Cut(rest, "  t:\n")
	p.rewrite(whole, strings.Replace(before, "        hdfs: {topics: [\"*\"], on_full: block}\n", "", 1)+"  t:\n"+after)
	return p
}

// complains is nil when the service is not ready and says one of these.
func (s *service) complains(words ...string) error {
	err := s.ready()
	if err == nil {
		return fmt.Errorf("%s is ready", s.name)
	}
	for _, w := range words {
		if strings.Contains(err.Error(), w) {
			return nil
		}
	}
	return err
}
