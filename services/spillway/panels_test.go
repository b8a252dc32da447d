package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/spillwayio/spillway/services/internal/race"
)

// seldom matches expressions that have a value only when something is wrong.
var seldom = regexp.MustCompile(`> 0$|< Inf$|^ALERTS|kafka_throttled`)

var legendLabel = regexp.MustCompile(`{{(\w+)}}`)

// TestPanelsHaveData asks a real Prometheus, which scrapes a pipeline with a delivery to files and
// one to Kafka, for each expression of the dashboard, as Grafana does: all are answered, those of
// a pipeline that is well have values, and these have the labels that the legend names.
func TestPanelsHaveData(t *testing.T) {
	race.Apart(t)
	source := kafkaOf(t, kfake.SeedTopics(2, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	c := start(t, "run", "-c", writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {spill_after: 0s, subscriptions: {files: {}, kafka: {}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}}}
  kafka: {subscription: q/kafka, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: out}}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files"), kafkaOf(t, kfake.SeedTopics(1, "out"))[0])))
	c.wait("joined the group")
	var targets []string
	for _, m := range regexp.MustCompile(`msg=starting service=.* http=(\S+)`).FindAllStringSubmatch(c.out.String(), -1) {
		targets = append(targets, m[1])
	}
	if len(targets) != 4 {
		t.Fatalf("the services listen at %q", targets)
	}
	prometheus := startPrometheusWith(t, "global: {scrape_interval: 1s}", targets...)
	if prometheus == "" {
		return
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-stopped }()
	go func() {
		defer close(stopped)
		for {
			select {
			case <-time.After(50 * time.Millisecond):
				client.Produce(t.Context(), &kgo.Record{Value: []byte("v")}, nil)
			case <-stop:
				return
			}
		}
	}()

	for _, p := range dashboard(t) {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "30s", "$job", ".*").Replace(target.Expr)
			var found []map[string]string
			waitUntil(t, p.Title+" has a value: "+expr, func() bool {
				found = ask(t, prometheus, expr)
				return len(found) > 0 || seldom.MatchString(expr)
			})
			for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				for _, labels := range found {
					if labels[m[1]] == "" {
						t.Errorf("%s: its legend names %s, and a series of %s has only %v", p.Title, m[1], expr, labels)
					}
				}
			}
		}
	}
}

// ask returns the labels of what an expression yields now, and nothing while Prometheus starts.
func ask(t *testing.T, prometheus, expr string) (series []map[string]string) {
	t.Helper()
	response, err := http.Get("http://" + prometheus + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	var answer struct {
		Error string
		Data  struct {
			Result []struct{ Metric map[string]string }
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil // it is not JSON before Prometheus is ready
	}
	if answer.Error != "" {
		t.Fatalf("%s: %s", expr, answer.Error)
	}
	for _, r := range answer.Data.Result {
		series = append(series, r.Metric)
	}
	return series
}
