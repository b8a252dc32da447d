package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser is a headless Chromium, steered by its DevTools protocol over a pipe: messages are JSON,
// each with a zero byte behind it.
type browser struct {
	t       *testing.T
	to      io.Writer
	session string // of the page

	mu       sync.Mutex
	next     int
	waiting  map[int]chan message
	problems []string // exceptions, and what the page was not allowed to do
}

type message struct {
	ID     int
	Method string
	Params json.RawMessage
	Result json.RawMessage
	Error  *struct{ Message string }
}

// newBrowser starts one, which ends with the test. Without Chromium the test is skipped.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no chromium on this machine: apt-get install chromium")
	}
	cmd := exec.CommandContext(t.Context(), path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir="+profileDir(t), "--remote-debugging-pipe", "about:blank")
	read, itsWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	itsRead, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{itsRead, itsWrite} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = itsRead.Close(), itsWrite.Close() // Chromium has them
	b := &browser{t: t, to: write, waiting: make(map[int]chan message)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.receive(read)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		_, _ = write.Close(), read.Close()
		<-ended
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Accessibility"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// profileDir returns a directory that is removed at the end. The browser's own processes may write
// to it for a moment after the browser was killed.
func profileDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "spillway-browser")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 50 {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("the browser's profile is left: %v", err)
	})
	return dir
}

func (b *browser) receive(from io.Reader) {
	for r := bufio.NewReader(from); ; {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		if answer := b.waiting[m.ID]; m.ID != 0 && answer != nil {
			answer <- m
			delete(b.waiting, m.ID)
		}
		// What the network refused is for the page to show, and recommendations are not problems.
		said := string(m.Params)
		if m.Method == "Runtime.exceptionThrown" || m.Method == "Log.entryAdded" && !strings.Contains(said, `"source":"network"`) && !strings.Contains(said, `"level":"verbose"`) {
			b.problems = append(b.problems, said)
		}
		b.mu.Unlock()
	}
}

func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	answer := make(chan message, 1)
	b.mu.Lock()
	b.next++
	request := map[string]any{"id": b.next, "method": method, "params": params}
	b.waiting[b.next] = answer
	b.mu.Unlock()
	if params == nil {
		delete(request, "params")
	}
	if b.session != "" {
		request["sessionId"] = b.session
	}
	text, err := json.Marshal(request)
	if err == nil {
		_, err = b.to.Write(append(text, 0))
	}
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(limit):
		b.t.Fatalf("%s: no answer", method)
	}
}

// eval returns what an expression is on the page.
func (b *browser) eval(expression string) any {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	return r.Result.Value
}

// await waits until an expression is true.
func (b *browser) await(expression string) {
	b.t.Helper()
	for end := time.Now().Add(limit); b.eval("!!("+expression+")") != true; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("not true: %s\nThe page has: %v\nproblems: %v", expression, b.eval("document.body.innerText"), b.troubles())
		}
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
}

func (b *browser) size(width int, scheme string) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// press presses a key: Tab, Enter, or what is typed by text.
func (b *browser) press(key string) {
	b.t.Helper()
	codes := map[string]int{"Tab": 9, "Enter": 13}
	down := map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
	if key == "Enter" {
		down["text"] = "\r"
	}
	b.call("Input.dispatchKeyEvent", down, nil)
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}, nil)
}

func (b *browser) text(text string) {
	b.t.Helper()
	b.call("Input.insertText", map[string]any{"text": text}, nil)
}

// tabTo presses Tab until what has the focus has this text; it must be visible that it does.
func (b *browser) tabTo(text string) {
	b.t.Helper()
	for range 60 {
		b.press("Tab")
		if b.eval("document.activeElement.textContent.trim()") == text {
			if width := b.eval("getComputedStyle(document.activeElement).outlineStyle"); width == "none" {
				b.t.Errorf("nothing shows that %q has the focus", text)
			}
			return
		}
	}
	b.t.Fatalf("Tab does not get to %q", text)
}

// unnamed lists what a screen reader has no name for.
func (b *browser) unnamed() (all []string) {
	b.t.Helper()
	var tree struct {
		Nodes []struct {
			Ignored bool
			Role    struct{ Value string }
			Name    struct{ Value string }
		}
	}
	b.call("Accessibility.getFullAXTree", nil, &tree)
	named := map[string]bool{"button": true, "link": true, "image": true, "img": true, "progressbar": true, "textbox": true, "table": true, "heading": true, "region": true}
	seen := 0
	for _, n := range tree.Nodes {
		if n.Ignored || !named[n.Role.Value] {
			continue
		}
		if seen++; strings.TrimSpace(n.Name.Value) == "" {
			all = append(all, n.Role.Value)
		}
	}
	if seen < 3 {
		all = append(all, fmt.Sprintf("only %d nodes", seen))
	}
	return all
}

// screenshots is where shoot keeps them.
var screenshots = os.Getenv("SCREENSHOTS_DIR")

// shoot keeps a screenshot of the whole page, if $SCREENSHOTS_DIR says where.
func (b *browser) shoot(name string) {
	b.t.Helper()
	dir := screenshots
	if dir == "" {
		return
	}
	var r struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &r)
	png, err := base64.StdEncoding.DecodeString(r.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Error(err)
	}
}

// troubles returns what went wrong on the pages so far.
func (b *browser) troubles() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.problems...)
}
