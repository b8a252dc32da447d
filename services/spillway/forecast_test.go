package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestTimeToFull has a destination that is away and records at a steady rate: 15 seconds later
// the metric says when the disk bound will be reached. On a quiet machine that is within 10 % of
// what then happens; the test allows for one whose rate is not steady.
func TestTimeToFull(t *testing.T) {
	race.Apart(t)
	t.Parallel()
	const limit, perSecond, size = 288 << 20, 60, 100 << 10
	source := kafkaOf(t, kfake.SeedTopics(4, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	c := start(t, "run", "-c", writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {memory: {bytes: 32MiB}, disk: {bytes: %d}, subscriptions: {away: {}}}}}
delivery: {d: {subscription: q/away, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: out}}}
`, source[0], filepath.Join(dir, "buffer"), limit, freeAddr(t))))
	c.wait("joined the group")
	address := regexp.MustCompile(`msg=starting service=buffer .* http=(\S+)`).FindStringSubmatch(c.out.String())[1]

	random := rand.NewChaCha8([32]byte{})
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for tick := time.NewTicker(time.Second / perSecond); ; {
			select {
			case <-tick.C:
				value := make([]byte, size)
				_, _ = random.Read(value) // never fails
				client.Produce(t.Context(), &kgo.Record{Value: value}, nil)
			case <-stop:
				return
			}
		}
	}()

	read := func(name, window string) float64 {
		t.Helper()
		return metric(t, "http://"+address+"/metrics", name, window)
	}
	waitUntil(t, "the disk's use grows", func() bool { return read("spillway_buffer_disk_bytes", "") > 40<<20 })
	time.Sleep(15 * time.Second)
	forecast, began := read("spillway_buffer_time_to_full_seconds", "15s"), time.Now()
	waitUntil(t, "the disk is full", func() bool { return read("spillway_buffer_time_to_full_seconds", "15s") == 0 })
	took := time.Since(began).Seconds()
	t.Logf("forecast %.1f s, took %.1f s", forecast, took)
	if took < 10 {
		t.Fatalf("it was full after %.1f s: the test's rate is too high to tell", took)
	}
	if forecast < 0.75*took || forecast > 1.3*took {
		t.Errorf("the forecast was %.1f s, and it took %.1f s", forecast, took)
	}
	if age := read("spillway_buffer_subscription_age_seconds", ""); age < took+15 || age > took+60 {
		t.Errorf("the oldest record is %.0f s old after %.0f s", age, took+15)
	}
}

// metric reads one value; window may be empty.
func metric(t *testing.T, url, name, window string) float64 {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[name].GetMetric() {
		for _, l := range m.Label {
			if window == "" || l.GetName() == "window" && l.GetValue() == window {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no %s in %s", name, url)
	return 0
}
