package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/picture"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// topEvery is the time between two looks at the buffer.
const topEvery = 2 * time.Second

func newTop() *cobra.Command {
	t := bufferTarget()
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Shows what flows through a buffer, what is wrong and what to do, live",
		Long: "Asks a running buffer again and again, and shows on the terminal what is wrong and what to do, what comes in, what is\n" +
			"in memory and on disk beside the bounds and when the disk is full, and for each subscription its backlog in records, bytes\n" +
			"and age, what goes out a second, and when the backlog is gone. It outlives restarts of the buffer. q or Ctrl-C ends it.\n" +
			"With a file that names several buffers, it shows the queues that they divide as one, and the disk of each.\n\n" +
			"Forecasts and rates are of the last 15 seconds. Without a terminal, and with --once or --output json, it looks once.\nFrom 40 columns on it shows the same in more lines. With NO_COLOR set, it has no colours.",
		Example: "  spillway top\n  spillway top -b buffer:7400\n  spillway top --once -c pipeline.yaml",
		Args:    noArgs,
	}
	cmd.RunE = t.run(func(c *call, _ []string) error {
		top := newTopOf(c)
		if once || c.output == "json" || !isTerminal(cmd.OutOrStdout()) {
			return top.once()
		}
		s, restore, err := takeTerminal(os.Stdin, cmd.OutOrStdout().(*os.File))
		if err != nil {
			return err
		}
		defer restore()
		return top.live(s)
	})
	t.register(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "look once, and end")
	return cmd
}

// top shows pictures of a buffer, or of all that divide the queues.
type top struct {
	*call
	buffers []picture.Buffer
}

func newTopOf(c *call) *top {
	t := &top{call: c}
	for _, conn := range c.all {
		t.buffers = append(t.buffers, picture.Buffer{Address: rpc.Address(conn), Admin: spillwayv1.NewBufferAdminServiceClient(conn)})
	}
	return t
}

// where names the buffers.
func (t *top) where() string {
	var all []string
	for _, b := range t.buffers {
		all = append(all, b.Address)
	}
	return strings.Join(all, ", ")
}

// look asks the buffers, with the time that an answer may take.
func (t *top) look() (p *picture.Picture, err error) {
	err = t.ask(func(ctx context.Context) error {
		p, err = picture.LookAll(ctx, t.buffers)
		return err
	})
	return p, err
}

// once prints one picture, in 80 columns.
func (t *top) once() error {
	p, err := t.look()
	if err != nil {
		return err
	}
	if t.output == "json" {
		return t.json(p)
	}
	for _, line := range p.Lines(picture.Style{Width: 80}) {
		if _, err := fmt.Fprintln(t.out, line); err != nil {
			return err
		}
	}
	return nil
}

// screen is a terminal that shows a text, over and over.
type screen struct {
	out     io.Writer
	size    func() (width, height int)
	resized <-chan os.Signal
	quit    <-chan struct{} // closed when a key ends it
	colour  bool
}

// live draws pictures until somebody ends it. A buffer that is away does not: what it last said
// stays, with how long that was ago. One that refuses the caller ends it, and so does one that is
// away in the beginning.
func (t *top) live(s *screen) error {
	type seen struct {
		p   *picture.Picture
		err error
	}
	ctx, cancel := context.WithCancel(t.ctx)
	looking := &top{call: &call{target: t.target, ctx: ctx, out: t.out}, buffers: t.buffers}
	looks, next, ended := make(chan seen, 1), make(chan struct{}, 1), make(chan struct{})
	go func() { // at most one look is under way, or wanted, or waits to be seen
		defer close(ended)
		for range next {
			p, err := looking.look()
			looks <- seen{p, err}
		}
	}()
	defer func() {
		close(next)
		cancel()
		<-ended
	}()
	next <- struct{}{}

	var last seen
	tick := time.NewTimer(topEvery)
	tick.Stop() // until the first look was seen
	for {
		select {
		case <-s.quit:
			return nil
		case <-t.ctx.Done():
			return nil
		case <-s.resized:
		case <-tick.C:
			next <- struct{}{}
			continue
		case got := <-looks:
			if got.err != nil && (last.p == nil || refused(got.err)) {
				return got.err
			}
			if last.err = got.err; got.err == nil {
				last.p = got.p
			}
			tick.Reset(topEvery)
		}
		if last.p != nil {
			s.draw(t.frame(s, last.p, last.err))
		}
	}
}

// refused says whether trying again is in vain.
func refused(err error) bool {
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}

// frame is what fills the screen: one line about the buffer, and the picture.
func (t *top) frame(s *screen, p *picture.Picture, err error) []string {
	width, height := s.size()
	lines := p.Lines(picture.Style{Width: width, Height: height, Colour: s.colour})
	width = max(width, 40)
	clock := p.At.Format("15:04:05") + "  q: quit"
	title := picture.Cut("spillway top  "+t.where(), width-len(clock)-1)
	head := []string{fmt.Sprintf("%-*s %s", width-len(clock)-1, title, clock)}
	if err != nil {
		away := fmt.Sprintf("No answer for %s; this is what was before: %v", picture.Duration(time.Since(p.At)), rpc.Explain(err, t.service, t.where()))
		head = append(head, picture.Cut(strings.Join(strings.Fields(away), " "), width))
	}
	lines = append(append(head, ""), lines...)
	if len(lines) > height {
		more := fmt.Sprintf("... %d more lines; spillway top --once shows all", len(lines)-height+1)
		lines = append(lines[:max(0, height-1)], picture.Cut(more, width))
	}
	return lines
}

// draw writes over all that the screen shows. It homes the cursor, and clears each line and the
// rest of the screen, so that nothing of before stays, whatever size the terminal had. A line is
// cleared before it is written: behind a full one the cursor is still on its last column.
func (s *screen) draw(lines []string) {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("\x1b[K" + line)
	}
	b.WriteString("\x1b[J")
	_, _ = io.WriteString(s.out, b.String()) // a terminal that is gone ends the process by SIGHUP
}

// takeTerminal turns to the terminal's other screen, hides the cursor and takes keys, until
// restore is called.
func takeTerminal(in, out *os.File) (s *screen, restore func(), err error) {
	before := func() {}
	quit := make(chan struct{})
	if term.IsTerminal(int(in.Fd())) {
		state, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, nil, fmt.Errorf("read keys from the terminal: %w; try --once", err)
		}
		before = func() { _ = term.Restore(int(in.Fd()), state) } // nothing else could be done
		go func() {                                               // ends with a key, or the process
			defer close(quit)
			awaitQuit(in)
		}()
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	_, _ = io.WriteString(out, "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J") // long lines are cut, not wrapped
	s = &screen{out: out, resized: resized, quit: quit, colour: os.Getenv("NO_COLOR") == "", size: func() (int, int) {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			return 80, 24
		}
		return width, height
	}}
	return s, func() {
		signal.Stop(resized)
		_, _ = io.WriteString(out, "\x1b[?7h\x1b[?25h\x1b[?1049l")
		before()
	}, nil
}

// awaitQuit reads keys until one of them ends it: q, Ctrl-C or Ctrl-D, or the terminal's end.
func awaitQuit(in io.Reader) {
	key := make([]byte, 1)
	for {
		n, err := in.Read(key)
		if err != nil {
			return
		}
		if n > 0 && strings.ContainsRune("qQ\x03\x04", rune(key[0])) {
			return
		}
	}
}
