package console

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/picture"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/security"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is one that has a queue, and counts the looks at it.
type buffer struct {
	spillwayv1.UnimplementedBufferAdminServiceServer
	looks  int
	shard  int32
	pauses atomic.Int32
	dead   int64 // dead letters
}

func (b *buffer) ListQueues(context.Context, *spillwayv1.ListQueuesRequest) (*spillwayv1.ListQueuesResponse, error) {
	b.looks++
	return &spillwayv1.ListQueuesResponse{Queues: []*spillwayv1.Queue{{Name: "q", State: "open", DiskBytes: 5, DiskBytesLimit: 10, Shard: b.shard, Shards: 2}}}, nil
}

func (b *buffer) ListSubscriptions(context.Context, *spillwayv1.ListSubscriptionsRequest) (*spillwayv1.ListSubscriptionsResponse, error) {
	return &spillwayv1.ListSubscriptionsResponse{Subscriptions: []*spillwayv1.Subscription{{Name: "q/<b>s</b>", PendingRecords: 7}}}, nil
}

func (b *buffer) ListSessions(context.Context, *spillwayv1.ListSessionsRequest) (*spillwayv1.ListSessionsResponse, error) {
	return &spillwayv1.ListSessionsResponse{}, nil
}

func (b *buffer) PauseSubscription(_ context.Context, r *spillwayv1.PauseSubscriptionRequest) (*spillwayv1.PauseSubscriptionResponse, error) {
	b.pauses.Add(1)
	if r.Name != "q/s" {
		return nil, rpc.Error(5, "SUBSCRIPTION_NOT_FOUND", 0, "no such subscription: %s", r.Name)
	}
	return &spillwayv1.PauseSubscriptionResponse{Subscription: &spillwayv1.Subscription{Name: r.Name, Paused: true}}, nil
}

func (b *buffer) ListUndelivered(context.Context, *spillwayv1.ListUndeliveredRequest) (*spillwayv1.ListUndeliveredResponse, error) {
	return &spillwayv1.ListUndeliveredResponse{Ranges: []*spillwayv1.Undelivered{{Reason: fmt.Sprint("of shard ", b.shard)}}}, nil
}

func (b *buffer) RedriveUndelivered(context.Context, *spillwayv1.RedriveUndeliveredRequest) (*spillwayv1.RedriveUndeliveredResponse, error) {
	if b.dead == 0 {
		return nil, rpc.Error(5, "NOTHING_CHOSEN", 0, "nothing undelivered")
	}
	return &spillwayv1.RedriveUndeliveredResponse{Offsets: b.dead}, nil
}

// site is a console on loopback, without security.
type site struct {
	t       *testing.T
	buffer  *buffer
	console *Console
	url     string
}

func newSite(t *testing.T, others ...*grpc.ClientConn) *site {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	guard, err := security.New(&config.Security{}, log)
	if err != nil {
		t.Fatal(err)
	}
	x := &site{t: t, buffer: &buffer{}}
	direct := rpc.NewDirect(log)
	spillwayv1.RegisterBufferAdminServiceServer(direct, x.buffer)
	x.console = New(direct, others, guard, "v1.2.3")
	web := httptest.NewServer(guard.Handler(x.console))
	x.url = web.URL
	t.Cleanup(func() {
		web.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return x
}

// ask returns what a request is answered; body may be empty, headers come in pairs.
func (x *site) ask(method, path, body string, headers ...string) (*http.Response, string) {
	x.t.Helper()
	r, err := http.NewRequestWithContext(x.t.Context(), method, x.url+path, strings.NewReader(body))
	if err != nil {
		x.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		x.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return response, string(b)
}

// TestPages have headers that let a browser load nothing else, and nothing in them that those
// would forbid.
func TestPages(t *testing.T) {
	x := newSite(t)
	static, err := fs.Glob(files, "static/*")
	if err != nil || len(static) < 8 {
		t.Fatal(static, err)
	}
	inline := regexp.MustCompile(`(?i)<script(?:[^>]*)>[^<]|<style|\sstyle=|\son[a-z]+=|https?://(?:[^w]|w[^w])|innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function`)
	for _, file := range static {
		path := "/console/" + strings.TrimPrefix(file, "static/")
		if path == "/console/index.html" {
			path = "/console/"
		}
		r, body := x.ask("GET", path, "")
		if r.StatusCode != 200 || body == "" {
			t.Errorf("%s: %s", path, r.Status)
		}
		for name, want := range map[string]string{"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if found := inline.FindString(body); found != "" {
			t.Errorf("%s has %q", path, found)
		}
		kind := map[string]string{"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml", "/console/": "text/html; charset=utf-8"}
		if got, want := r.Header.Get("Content-Type"), kind[path[strings.LastIndex(path, ".")+1:]]; got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	if strings.Contains(policy, "unsafe") || !strings.HasPrefix(policy, "default-src 'none'") {
		t.Errorf("policy %s", policy)
	}
	if r, _ := x.ask("GET", "/", ""); r.StatusCode != http.StatusFound || r.Header.Get("Location") != "/console/" {
		t.Errorf("/ leads to %s", r.Header.Get("Location"))
	}
	if r, _ := x.ask("GET", "/console/api/nothing", ""); r.StatusCode != 404 {
		t.Errorf("nothing: %s", r.Status)
	}
}

// TestAPI shows the picture and its history, and passes on calls of its own pages only.
func TestAPI(t *testing.T) {
	x := newSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- x.console.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	r, body := x.ask("GET", "/console/api/picture", "")
	var p picture.Picture
	if err := json.Unmarshal([]byte(body), &p); err != nil || r.StatusCode != 200 || len(p.Queues) != 1 || p.Queues[0].Subscriptions[0].Backlog != 7 ||
		r.Header.Get("Cache-Control") != "no-store" || strings.Contains(body, "<b>") {
		t.Fatalf("%s %s %v", r.Status, body, err)
	}
	for end := time.Now().Add(time.Minute); ; {
		_, body = x.ask("GET", "/console/api/history?name=q", "")
		if strings.Contains(body, `"bytes":[5]`) && strings.Contains(body, `"per_second":[null]`) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("history %s", body)
		}
	}
	if _, body = x.ask("GET", "/console/api/history?name=other", ""); !strings.Contains(body, `"at":[]`) {
		t.Errorf("history %s", body)
	}
	var me struct {
		Caller, CSRF, Version string
		MayOperate            bool `json:"may_operate"`
	}
	if _, body = x.ask("GET", "/console/api/me", ""); json.Unmarshal([]byte(body), &me) != nil || me.Caller != "anonymous" || !me.MayOperate || me.Version != "v1.2.3" || me.CSRF == "" {
		t.Fatalf("me %s", body)
	}
	for _, test := range []struct {
		path, body string
		headers    []string
		want       int
		answer     string
	}{
		{"call/PauseSubscription", `{"name": "q/s"}`, []string{"X-Spillway-Csrf", me.CSRF}, 200, `"paused":`},
		{"call/PauseSubscription", `{"name": "q/t"}`, []string{"X-Spillway-Csrf", me.CSRF}, 404, "no such subscription: q/t"},
		{"call/PauseSubscription", `{"nme": "q/s"}`, []string{"X-Spillway-Csrf", me.CSRF}, 400, "unknown field"},
		{"call/PauseSubscription", `{"name": "` + strings.Repeat("x", maxBody) + `"}`, []string{"X-Spillway-Csrf", me.CSRF}, 400, "too large"},
		{"call/PauseSubscription", `{"name": "q/s"}`, nil, 403, "X-Spillway-Csrf"},
		{"call/PauseSubscription", `{"name": "q/s"}`, []string{"X-Spillway-Csrf", me.CSRF, "Origin", "http://evil.example"}, 403, "cross-origin"},
		{"call/DeleteSubscription", `{"name": "q/s"}`, []string{"X-Spillway-Csrf", me.CSRF}, 404, "no page uses"},
		{"call/PeekRecords", `{}`, []string{"X-Spillway-Csrf", me.CSRF}, 404, "no page uses"},
		{"logout", ``, nil, 403, "X-Spillway-Csrf"},
	} {
		r, body := x.ask("POST", "/console/api/"+test.path, test.body, test.headers...)
		if r.StatusCode != test.want || !strings.Contains(body, test.answer) {
			t.Errorf("%s %.50s %v: %s %s", test.path, test.body, test.headers, r.Status, body)
		}
	}
	if r, body := x.ask("POST", "/console/api/login", `{"token": 1}`); r.StatusCode != 401 || r.Header.Get("Set-Cookie") != "" {
		t.Errorf("login: %s %s", r.Status, body)
	}
}

// TestSeveralBuffers shows all buffers that divide a queue, and steers all: each once, though the
// list of buffers has that of the console, too. One that is away is no obstacle to look, and one
// to steer.
func TestSeveralBuffers(t *testing.T) {
	var others []*grpc.ClientConn
	var fakes []*buffer
	var stop []func()
	for shard := range int32(3) {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		fake, server := &buffer{shard: shard, dead: int64(shard)}, grpc.NewServer()
		spillwayv1.RegisterBufferAdminServiceServer(server, fake)
		go func() { _ = server.Serve(lis) }()
		t.Cleanup(server.Stop)
		conn, err := rpc.Dial(lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		others, fakes, stop = append(others, conn), append(fakes, fake), append(stop, server.Stop)
	}
	x := newSite(t, others...)
	x.buffer.dead = 5
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	defer func() {
		if err := x.console.Run(ctx); err != nil { // closes the connections
			t.Error(err)
		}
	}()
	_, body := x.ask("GET", "/console/api/me", "")
	var me struct{ CSRF string }
	if err := json.Unmarshal([]byte(body), &me); err != nil {
		t.Fatal(err)
	}
	call := func(method, request string, want int, answer string) {
		t.Helper()
		r, body := x.ask("POST", "/console/api/call/"+method, request, "X-Spillway-Csrf", me.CSRF)
		if r.StatusCode != want || !regexp.MustCompile(answer).MatchString(body) {
			t.Errorf("%s %s: %s %s, want %d %s", method, request, r.Status, body, want, answer)
		}
	}
	_, body = x.ask("GET", "/console/api/picture", "")
	var p picture.Picture
	if err := json.Unmarshal([]byte(body), &p); err != nil || len(p.Queues) != 1 || len(p.Queues[0].Shards) != 3 || p.Queues[0].Disk.Used != 15 ||
		p.Buffers[0].Address != rpc.Address(others[0]) || p.Queues[0].Subscriptions[0].Backlog != 21 {
		t.Fatalf("%s %v", body, err)
	}
	call("PauseSubscription", `{"name": "q/s"}`, 200, `"paused":\s*true`)
	if x.buffer.pauses.Load() != 1 || fakes[0].pauses.Load() != 0 || fakes[1].pauses.Load() != 1 || fakes[2].pauses.Load() != 1 {
		t.Error("not each buffer was asked once")
	}
	call("ListUndelivered", `{"subscription": "q/s"}`, 200, "(?s)of shard 0.*of shard 1.*of shard 2")
	call("RedriveUndelivered", `{"subscription": "q/s", "filter": {}}`, 200, `"offsets":\s*"8"`)
	x.buffer.dead, fakes[2].dead = 0, 0
	call("RedriveUndelivered", `{"subscription": "q/s", "filter": {}}`, 200, `"offsets":\s*"1"`)
	fakes[1].dead = 0
	call("RedriveUndelivered", `{"subscription": "q/s", "filter": {}}`, 404, "nothing undelivered")

	stop[2]()
	x.console.last = nil // a second is over
	call("ListUndelivered", `{"subscription": "q/s"}`, 200, "(?s)of shard 0.*of shard 1")
	call("PauseSubscription", `{"name": "q/s"}`, 503, regexp.QuoteMeta(rpc.Address(others[2])))
	if x.buffer.pauses.Load() != 2 || fakes[1].pauses.Load() != 2 {
		t.Error("a buffer that is away keeps the others from being asked")
	}
	_, body = x.ask("GET", "/console/api/picture", "")
	if !strings.Contains(body, `"about":"`+rpc.Address(others[2])+`","what":"this buffer is not in the picture`) {
		t.Errorf("a buffer that is away is no trouble: %s", body)
	}
}

// TestLooksAreShared has many who ask at once cause one look.
func TestLooksAreShared(t *testing.T) {
	x := newSite(t)
	answers := make(chan error, 20)
	for range cap(answers) {
		go func() {
			_, err := x.console.look(t.Context())
			answers <- err
		}()
	}
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if x.buffer.looks > 3 { // a slow machine takes more than a second
		t.Errorf("%d looks", x.buffer.looks)
	}
}

// TestHistoryIsBounded keeps an hour of so many, and forgets who is gone.
func TestHistoryIsBounded(t *testing.T) {
	h := newHistory()
	q := &picture.Queue{Name: "q", State: "open"}
	for i := range maxSeries + 10 {
		q.Subscriptions = append(q.Subscriptions, &picture.Subscription{Name: fmt.Sprintf("q/%d", i)})
	}
	for i := range maxSamples + 5 {
		q.Disk.Used = int64(i)
		h.add(&picture.Picture{At: time.Unix(int64(i), 0), Queues: []*picture.Queue{q}})
	}
	s := h.of("q")
	if len(h.series) != maxSeries || len(s.At) != maxSamples || len(s.Bytes) != maxSamples || s.At[0] != 5 || s.Bytes[maxSamples-1] != sample(maxSamples+4) || cap(h.series["q"].At) > 2*maxSamples {
		t.Errorf("%d series, %d samples from %d", len(h.series), len(s.At), s.At[0])
	}
	all := q.Subscriptions
	q.State, q.Subscriptions = "recovering", nil
	h.add(&picture.Picture{Queues: []*picture.Queue{q}})
	if len(h.series) != maxSeries {
		t.Errorf("a queue that is not open loses the history of its subscriptions: %d are left", len(h.series))
	}
	q.State, q.Subscriptions = "open", all[:1]
	h.add(&picture.Picture{Queues: []*picture.Queue{q}})
	if len(h.series) != 2 {
		t.Errorf("%d series are left of those that are gone", len(h.series))
	}
}
