package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// worstContrast finds the text that is the hardest to read: WCAG wants 4.5.
const worstContrast = `(() => {
  const rgb = (c) => (c.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; })
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let worst = 21;
  for (const e of document.querySelectorAll('main *, header *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.closest('button:disabled') || !e.getClientRects().length) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(back(e));
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
})()`

// TestConsoleInBrowser looks at the console of a running pipeline, whose Kafka delivery is away,
// in a real browser: on a phone and a wide screen, in light and dark, and steers it with the
// keyboard.
func TestConsoleInBrowser(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	source := kafkaOf(t, kfake.SeedTopics(1, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	c := start(t, "run", "-c", writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}, kafka: {}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}}}
  kafka: {subscription: q/kafka, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: out}}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files"), freeAddr(t))))
	c.wait("joined the group")
	for i := range 100 {
		client.Produce(t.Context(), &kgo.Record{Value: fmt.Append(nil, i)}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`msg=starting service=buffer .*grpc=(\S+) http=(\S+)`).FindStringSubmatch(c.out.String())
	if found == nil {
		t.Fatal("no address of the buffer in the log")
	}
	url := "http://" + found[2] + "/" // leads to the console

	looks := func(name string) {
		t.Helper()
		for _, width := range []int{390, 1440} {
			for _, scheme := range []string{"light", "dark"} {
				b.size(width, scheme)
				b.await(fmt.Sprintf("innerWidth === %d && matchMedia('(prefers-color-scheme: %s)').matches", width, scheme))
				at := fmt.Sprintf("%s at %d, %s", name, width, scheme)
				if wide := b.eval("document.documentElement.scrollWidth").(float64); wide > float64(width) {
					t.Errorf("%s: it is %.0f wide", at, wide)
				}
				if worst := b.eval(worstContrast).(float64); worst < 4.5 {
					t.Errorf("%s: a text has a contrast of %.1f", at, worst)
				}
				b.shoot(fmt.Sprintf("%s-%d-%s", name, width, scheme))
			}
		}
		if names := b.unnamed(); len(names) > 0 {
			t.Errorf("%s: a screen reader has no name for %v", name, names)
		}
	}
	b.size(1440, "light")
	b.open(url)
	b.await("location.pathname === '/console/' && document.querySelector('h1')?.textContent === 'What flows'")
	b.await("[...document.querySelectorAll('tbody tr')].some((r) => r.innerText.includes('q/kafka') && r.innerText.includes('100'))")
	b.await("document.querySelectorAll('.plot').length === 3")
	looks("overview")

	b.tabTo("q/kafka")
	b.press("Enter")
	b.await("document.querySelector('h1').textContent === 'q/kafka' && document.activeElement.id === 'main'")
	b.await("document.querySelector('.tile[aria-label*=\"100 pending\"]')")
	b.await("document.body.innerText.includes('there is no hole')")
	b.await("document.body.innerText.includes('Nothing is unfinished.')")
	looks("subscription")
	b.tabTo("Pause")
	b.press("Enter")
	b.await("document.activeElement.textContent === 'Resume' && document.body.innerText.includes('it is paused; 100 records wait')")
	if got := spillway(t, "subscriptions", "-b", found[1]); !regexp.MustCompile(`q/kafka +paused`).MatchString(got.stdout) {
		t.Errorf("after Pause: %+v", got)
	}
	b.press("Enter")
	b.await("document.activeElement.textContent === 'Pause'")
	b.tabTo("All queues")
	b.press("Enter")
	b.await("document.querySelector('h1').textContent === 'What flows'")
	b.tabTo("q/files")
	b.press("Enter")
	b.await("document.querySelector('h1').textContent === 'q/files' && document.querySelector('.tile[aria-label*=\"100 delivered\"]')")
	b.await("document.querySelectorAll('.plot').length === 4 && document.querySelector('.plot path:not(.area)').getAttribute('d').startsWith('M')")
	if all := b.troubles(); len(all) > 0 {
		t.Errorf("the browser complains: %v", all)
	}
}

// TestConsoleOfSeveralBuffers looks at a queue that two buffers divide, in the console of one of
// them: what both have is there, and dead letters of both are delivered once more, with the
// keyboard.
func TestConsoleOfSeveralBuffers(t *testing.T) {
	t.Parallel()
	b, d := newBrowser(t), newDivided(t)
	b.size(1440, "light")
	b.open(d.consoles[1])
	b.await("document.querySelector('h1')?.textContent === 'What flows'")
	b.await(fmt.Sprintf("document.body.innerText.includes('Disk of shard 0, %s') && document.body.innerText.includes('Disk of shard 1, %s')", d.addresses[0], d.addresses[1]))
	b.shoot("several-1440-light")
	b.tabTo("q/files")
	b.press("Enter")
	rows := func(caption string) string {
		return fmt.Sprintf("[...document.querySelectorAll('table')].filter((t) => t.caption.textContent.startsWith('%s')).flatMap((t) => [...t.tBodies[0].rows])", caption)
	}
	b.await(fmt.Sprintf("%s.length === %d", rows("Dead letters"), dividedPartitions))
	b.await(fmt.Sprintf("%s.length === 2", rows("Deliveries"))) // a session with each buffer
	b.await(fmt.Sprintf("%s.length >= 2 && %[1]s.every((r) => /^\\/in\\/.*\\.tmp$/.test(r.cells[0].innerText) && /^\\/in\\//.test(r.cells[1].innerText) && r.cells[2].innerText.endsWith(' B'))", rows("What deliveries have not finished")))
	if got, want := b.eval(rows("What deliveries")+".map((r) => Number(r.cells[3].innerText)).reduce((a, b) => a + b)"), float64(dividedPartitions); got != want {
		t.Errorf("the open files have %v records, want %v", got, want)
	}
	b.shoot("dead-letters-1440-light")
	b.size(390, "dark")
	b.await("innerWidth === 390")
	if wide := b.eval("document.documentElement.scrollWidth").(float64); wide > 390 {
		t.Errorf("on a phone it is %.0f wide", wide)
	}
	if worst := b.eval(worstContrast).(float64); worst < 4.5 {
		t.Errorf("a text has a contrast of %.1f", worst)
	}
	if names := b.unnamed(); len(names) > 0 {
		t.Errorf("a screen reader has no name for %v", names)
	}
	b.shoot("dead-letters-390-dark")
	b.tabTo("Redrive")
	b.press("Enter")
	b.await("document.body.innerText.includes('1 record is delivered once more.')")
	b.tabTo("Redrive all dead letters")
	b.press("Enter")
	b.await("document.activeElement.textContent === 'Press again to redrive all dead letters'")
	b.press("Enter")
	b.await("/[0-9]+ records are delivered once more/.test(document.body.innerText)")
	b.await(fmt.Sprintf("%s.length === %d", rows("Dead letters"), dividedPartitions)) // they are nonsense still
	if all := b.troubles(); len(all) > 0 {
		t.Errorf("the browser complains: %v", all)
	}
}

// TestConsoleLogin has a reader log in, who sees everything and changes nothing.
func TestConsoleLogin(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	const token = "reader-0123456789abcdefghijklmnop"
	c := start(t, "buffer", "-c", writeFile(t, "pipeline.yaml", fmt.Sprintf(`
security: {tokens: [{name: reader, file: %q, roles: [read]}]}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}}}}}
`, writeFile(t, "token", token+"\n"), filepath.Join(t.TempDir(), "buffer"))))
	c.wait("msg=ready")
	address := regexp.MustCompile(`msg=starting service=buffer .* http=(\S+)`).FindStringSubmatch(c.out.String())[1]
	b.size(390, "light")
	b.open("http://" + address + "/console/#/q/files")
	b.await("document.querySelector('h1')?.textContent === 'Log in'")
	if names := b.unnamed(); len(names) > 0 {
		t.Errorf("a screen reader has no name for %v", names)
	}
	b.eval("document.getElementById('token').focus()")
	b.text("wrong")
	b.press("Enter")
	b.await("document.getElementById('problem').textContent === 'unknown token'")
	b.eval("document.getElementById('token').select()")
	b.text(token)
	b.press("Enter")
	b.await("document.querySelector('h1')?.textContent === 'q/files' && document.querySelector('[data-action=pause]')?.disabled")
	b.await("document.getElementById('who').innerText.startsWith('token:reader')")
	if cookie := b.eval("document.cookie"); cookie != "" {
		t.Errorf("scripts can read the cookie: %v", cookie)
	}
	b.open("http://" + address + "/console/")
	b.await("document.querySelector('h1')?.textContent === 'What flows'") // still logged in
	b.tabTo("Log out")
	b.press("Enter")
	b.await("document.querySelector('h1')?.textContent === 'Log in'")
	if all := b.troubles(); len(all) > 0 {
		t.Errorf("the browser complains: %v", all)
	}
}
