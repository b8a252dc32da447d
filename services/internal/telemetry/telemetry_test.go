package telemetry

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs h on a free port and returns a function that gets a path.
func serve(t *testing.T, h *HTTP) (get func(path string) (int, string)) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, lis) }()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returns %v", err)
		}
		if _, err := net.Dial("tcp", lis.Addr().String()); err == nil {
			t.Error("the port is still open")
		}
	})
	return func(path string) (int, string) {
		t.Helper()
		response, err := client.Get("http://" + lis.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
}

func TestReadyzFollowsSetReady(t *testing.T) {
	h := NewHTTP()
	get := serve(t, h)
	expect := func(code int, body string) {
		t.Helper()
		if gotCode, gotBody := get("/readyz"); gotCode != code || gotBody != body+"\n" {
			t.Errorf("/readyz is %d %q, want %d %q", gotCode, gotBody, code, body)
		}
		if gotCode, _ := get("/healthz"); gotCode != http.StatusOK {
			t.Errorf("/healthz is %d", gotCode)
		}
	}
	expect(503, "starting")
	h.SetReady(false, "buffer localhost:7400 is unreachable")
	expect(503, "buffer localhost:7400 is unreachable")
	h.SetReady(true, "")
	expect(200, "ready")
	h.SetReady(false, "draining")
	expect(503, "draining")
}

func TestMetrics(t *testing.T) {
	h := NewHTTP()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "spillway_test_records_total", Help: "Test."})
	h.Registry.MustRegister(counter)
	counter.Add(3)
	code, body := serve(t, h)("/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics is %d", code)
	}
	for _, line := range []string{"spillway_test_records_total 3", "go_goroutines ", "process_open_fds "} {
		if !strings.Contains(body, "\n"+line) {
			t.Errorf("/metrics has no %q", line)
		}
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := NewHTTP().Serve(t.Context(), lis); err == nil || !strings.Contains(err.Error(), "serve HTTP on 127.0.0.1:") {
		t.Errorf("error is %v", err)
	}
}

func TestNewLogger(t *testing.T) {
	for _, test := range []struct {
		level string
		json  bool
		want  []string
		not   string
	}{
		{"info", false, []string{"level=INFO msg=second n=1"}, "first"},
		{"DEBUG", true, []string{`"level":"DEBUG","msg":"first"`, `"msg":"second","n":1`}, "unknown"},
		{"error", false, nil, "second"},
		{"loud", false, []string{`level=WARN msg="unknown log level, using info" level=loud`, "second"}, "first"},
	} {
		var out bytes.Buffer
		log := NewLogger(&out, test.level, test.json)
		log.Debug("first")
		log.Info("second", "n", 1)
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("level %s: %q has no %q", test.level, out.String(), want)
			}
		}
		if strings.Contains(out.String(), test.not) {
			t.Errorf("level %s: %q has %q", test.level, out.String(), test.not)
		}
	}
}

// scraped is a collector that keeps those who ask waiting.
type scraped struct {
	running, most atomic.Int32
	release       chan struct{}
}

func (s *scraped) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, ch) }

func (s *scraped) Collect(chan<- prometheus.Metric) {
	n := s.running.Add(1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	<-s.release
	s.running.Add(-1)
}

// TestFewScrapesAtATime: what many scrapers ask for at once is made for a few at a time, and the
// others wait.
func TestFewScrapesAtATime(t *testing.T) {
	s := &scraped{release: make(chan struct{})}
	h := NewHTTP()
	open := make(chan struct{})
	close(open)
	all := s.release
	s.release = open // for Register, which collects once
	h.Registry.MustRegister(s)
	s.release = all
	s.most.Store(0)
	get := serve(t, h)
	var wg sync.WaitGroup
	for range 3 * maxScrapes {
		wg.Go(func() {
			if code, _ := get("/metrics"); code != http.StatusOK {
				t.Errorf("status %d", code)
			}
		})
	}
	for end := time.Now().Add(time.Minute); s.running.Load() < maxScrapes; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody is answered")
		}
	}
	close(all)
	wg.Wait()
	if n := s.most.Load(); n != maxScrapes {
		t.Errorf("%d answers were made at a time", n)
	}
}
