package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/spillwayio/spillway/services/internal/picture"
	"github.com/spillwayio/spillway/services/internal/race"
)

// TestCutOff cuts off a destination that took records at a steady rate, and measures when the
// metric, top, the console and the alert show it: in less than 15 seconds, with a time until the
// disk bound is reached that is within 10 % of what then happens. It allows for a machine whose
// rate is not steady, and logs what it measured.
func TestCutOff(t *testing.T) {
	race.Apart(t)
	const limit, perSecond, size = 320 << 20, 60, 100 << 10
	source := kafkaOf(t, kfake.SeedTopics(4, "in"))
	destination, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer destination.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	c := start(t, "run", "-c", writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {memory: {bytes: 32MiB}, disk: {bytes: %d}, subscriptions: {kafka: {}}}}}
delivery: {d: {subscription: q/kafka, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: out}}}
`, source[0], filepath.Join(dir, "buffer"), limit, destination.ListenAddrs()[0])))
	c.wait("joined the group")
	m := regexp.MustCompile(`msg=starting service=buffer .* grpc=(\S+) http=(\S+)`).FindStringSubmatch(c.out.String())
	url := "http://" + m[2]

	random := rand.NewChaCha8([32]byte{})
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-stopped }()
	go func() {
		defer close(stopped)
		ticks := time.NewTicker(time.Second / perSecond)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				value := make([]byte, size)
				_, _ = random.Read(value) // never fails
				client.Produce(t.Context(), &kgo.Record{Value: value}, nil)
			case <-stop:
				return
			}
		}
	}()

	showers := []*shower{
		{name: "metric", look: func() (bool, float64) {
			left := metric(t, url+"/metrics", "spillway_buffer_time_to_full_seconds", "15s")
			return left < 4*3600, left
		}},
		{name: "console", look: func() (bool, float64) {
			return troubleOf(t, getText(t, url+"/console/api/picture"))
		}},
		{name: "top", look: func() (bool, float64) {
			return troubleOf(t, spillway(t, "top", "--once", "-o", "json", "-b", m[1]).stdout)
		}},
	}
	if alerts := startPrometheus(t, m[2]); alerts != nil {
		showers = append(showers, &shower{name: "alert", look: alerts})
	}
	delivered := func() float64 {
		return metric(t, url+"/metrics", "spillway_buffer_subscription_delivered_records_total", "")
	}
	waitUntil(t, "records are delivered for longer than a window", func() bool { return delivered() > 20*perSecond })
	for _, s := range showers {
		if shown, left := s.look(); shown {
			t.Errorf("before: the %s shows trouble, full in %.0f s", s.name, left)
		}
	}

	destination.Close()
	cut := time.Now()
	for time.Since(cut) < 15*time.Second {
		for _, s := range showers {
			at := time.Since(cut)
			if shown, left := s.look(); shown {
				s.seen = append(s.seen, look{at, left})
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	full := func() bool { return metric(t, url+"/metrics", "spillway_buffer_time_to_full_seconds", "15s") == 0 }
	if full() {
		t.Fatal("the disk is full before its bound was forecast: the test's rate is too high to tell")
	}
	waitUntil(t, "the disk is full", full)
	took := time.Since(cut)
	t.Logf("the disk was full after %.1f s", took.Seconds())
	for _, s := range showers {
		if len(s.seen) == 0 {
			t.Errorf("the %s shows nothing in 15 s", s.name)
			continue
		}
		last := s.seen[len(s.seen)-1]
		within := slices.IndexFunc(s.seen, func(l look) bool { return math.Abs(l.off(took)) <= 0.1 })
		from := "never"
		if within >= 0 {
			from = fmt.Sprintf("after %.1f s", s.seen[within].at.Seconds())
		}
		t.Logf("the %-7s shows it after %4.1f s, within 10 %% %s, after %.1f s it is off by %+.0f %%", s.name, s.seen[0].at.Seconds(), from, last.at.Seconds(), 100*last.off(took))
		if off := last.off(took); math.Abs(off) > 0.3 {
			t.Errorf("the %s says after %.1f s that %.1f s are left: that is off by %.0f %%", s.name, last.at.Seconds(), last.left, 100*off)
		}
	}
}

// shower is something that shows that the disk will be full, and when.
type shower struct {
	name string
	look func() (shown bool, left float64)
	seen []look
}

// look is what was shown so long after the cut.
type look struct {
	at   time.Duration
	left float64 // seconds
}

// off is by which part of the time that was left the forecast is wrong.
func (l look) off(took time.Duration) float64 { return l.left/(took-l.at).Seconds() - 1 }

// troubleOf reads a picture: whether it says in words that the disk will be full, and when that
// is.
func troubleOf(t *testing.T, text string) (shown bool, left float64) {
	t.Helper()
	var p picture.Picture
	if err := json.Unmarshal([]byte(text), &p); err != nil || len(p.Queues) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	d, known := p.Queues[0].Full.Left()
	return known && slices.ContainsFunc(p.Troubles, func(x picture.Trouble) bool { return strings.Contains(x.What, "the disk bound will be reached in") }), d.Seconds()
}

// startPrometheus has a real Prometheus look at the buffer with deploy/observe's rules as often as
// its configuration there says, and returns what reads the alert: its value is a time, as one that
// is left would be that of the scrape and the evaluation.
func startPrometheus(t *testing.T, buffer string) func() (bool, float64) {
	t.Helper()
	rules, err := filepath.Abs(filepath.Join(observe, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join(observe, "prometheus.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	interval := regexp.MustCompile(`(?m)^global:.*$`).Find(shipped)
	address := startPrometheusWith(t, fmt.Sprintf("%s\nrule_files: [%q]\n", interval, rules), buffer)
	if address == "" {
		return nil
	}
	return func() (bool, float64) {
		t.Helper()
		var answer struct {
			Data struct {
				Alerts []struct {
					Labels map[string]string
					Value  string
				}
			}
		}
		response, err := http.Get("http://" + address + "/api/v1/alerts")
		if err != nil {
			return false, 0 // it starts
		}
		defer response.Body.Close()
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		for _, a := range answer.Data.Alerts {
			if a.Labels["alertname"] == "SpillwayDiskFillsFast" {
				var full float64
				if _, err := fmt.Sscan(a.Value, &full); err != nil {
					t.Fatal(err)
				}
				return true, full - float64(time.Now().UnixNano())/1e9
			}
		}
		return false, 0
	}
}

// startPrometheusWith has a real Prometheus scrape targets, and returns its address. It needs
// Debian's package prometheus, as promtool does: without it there is no address.
func startPrometheusWith(t *testing.T, config string, targets ...string) string {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Log("NOT RUN: what Prometheus says: it is not here; on Debian: apt-get install prometheus")
		return ""
	}
	file := writeFile(t, "prometheus.yaml", fmt.Sprintf("%s\nscrape_configs: [{job_name: spillway, static_configs: [{targets: [%s]}]}]\n", config, strings.Join(targets, ", ")))
	address := freeAddr(t)
	cmd := exec.CommandContext(t.Context(), path, "--config.file="+file, "--storage.tsdb.path="+t.TempDir(), "--web.listen-address="+address, "--log.level=error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	return address
}

func getText(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// metric reads one value; window may be empty.
func metric(t *testing.T, url, name, window string) float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(getText(t, url)))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[name].GetMetric() {
		for _, l := range m.Label {
			if window == "" || l.GetName() == "window" && l.GetValue() == window {
				if counter := m.GetCounter(); counter != nil {
					return counter.GetValue()
				}
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no %s in %s", name, url)
	return 0
}
