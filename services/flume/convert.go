package flume

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spillwayio/spillway/services/internal/config"
)

// Options are what a file of Flume does not tell.
type Options struct {
	// Agent names the agent to import; it may be empty when the file has one.
	Agent string
	// Brokers are the bootstrap brokers where the file only names ZooKeeper.
	Brokers []string
	// DefaultFS stands for fs.defaultFS where a path has no file system.
	DefaultFS string
	// Version is the release of Flume that ran the file, such as 1.9; empty: told by the spelling.
	Version string
	// LookupEnv resolves ${env:NAME} and ${NAME}; nil resolves nothing.
	LookupEnv func(string) (string, bool)
}

// Result is a converted agent.
type Result struct {
	// YAML is the pipeline, commented. `spillway check` accepts it unless the report says
	// otherwise. It is empty when nothing of the agent can be converted.
	YAML   string
	Report *Report
}

// Import converts an agent. It returns an error when there is none, or several without a choice.
// Of an agent of which Flume itself would start nothing there is only a report.
func Import(data []byte, o Options) (*Result, error) {
	document, err := ReadDocument(data)
	if err != nil {
		return nil, err
	}
	agents, stray := Agents(document)
	a, err := choose(agents, o.Agent)
	if err != nil {
		return nil, document.explain(err)
	}
	for _, name := range slices.Sorted(maps.Keys(agents)) {
		if name != a.Name {
			stray = append(stray, agents[name].left()...)
			a.remarks = append(a.remarks, Remark{0, fmt.Sprintf("the file has an agent %s, too: import it with --agent %[1]s", name), NotNeeded})
		}
	}
	a.remarks = append(a.remarks, document.Remarks...)
	a.resolve(o.LookupEnv)
	if err := a.validate(); err != nil {
		a.remarks = append(a.remarks, Remark{0, err.Error(), Unsupported})
		return &Result{Report: a.report(stray)}, nil
	}
	c := &converter{agent: a, options: o, root: &node{}, release: releaseOf(a, o.Version)}
	for _, part := range []string{"ingest", "buffer", "delivery"} {
		c.root.child(part)
	}
	c.root.child("buffer").text("data_dir", "/var/lib/spillway", "a directory of its own on a local disk, not one of Flume's")
	c.convert()
	if !c.converted {
		for _, l := range a.lists {
			l.entry.Fate, l.entry.Note, l.used = NotNeeded, "the components that Flume runs, of which none is converted", true
		}
		a.remarks = append(a.remarks, Remark{0, "nothing of the agent can be converted, so no pipeline is written: it has no Kafka source or Kafka channel with a sink that Spillway has", Unsupported})
		return &Result{Report: a.report(stray)}, nil
	}
	yaml := c.head() + c.root.String()
	if _, err := config.Parse("spillway.yaml", []byte(yaml), nil); err != nil {
		a.refused(err)
	}
	return &Result{YAML: yaml, Report: a.report(stray)}, nil
}

func choose(agents map[string]*Agent, name string) (*Agent, error) {
	names := slices.Sorted(maps.Keys(agents))
	switch {
	case len(names) == 0:
		return nil, fmt.Errorf("no agent in the file: no key such as agent.sources, agent.channels or agent.sinks")
	case name != "" && agents[name] == nil:
		return nil, fmt.Errorf("no agent %q in the file; there is %s", name, strings.Join(names, ", "))
	case name != "":
		return agents[name], nil
	case len(names) > 1:
		return nil, fmt.Errorf("the file has several agents: choose one with --agent (%s)", strings.Join(names, ", "))
	}
	return agents[names[0]], nil
}

// refused adds what `spillway check` says against the pipeline to the report.
func (a *Agent) refused(err error) {
	var problems config.Problems
	if !errors.As(err, &problems) {
		a.remarks = append(a.remarks, Remark{0, "spillway check refuses the pipeline: " + err.Error(), Unsupported})
		return
	}
	for _, p := range problems {
		a.remarks = append(a.remarks, Remark{0, fmt.Sprintf("spillway check refuses the pipeline: %v", p), Unsupported})
	}
}

// converter builds the pipeline of an agent.
type converter struct {
	agent   *Agent
	options Options
	root    *node
	release release
	ports   int // deliveries that have ports
	// converted says that something of the agent has become a part of the pipeline.
	converted bool
	queued    map[*Component]bool // channels that are subscriptions
}

// release is a minor release of Flume 1: 9 is 1.9.
type release int

func (r release) String() string { return fmt.Sprintf("1.%d", int(r)) }

// newKeys are keys of Kafka sources that Flume 1.5 and 1.6 do not know.
var newKeys = []string{"kafka.bootstrap.servers", "kafka.topics", "kafka.topics.regex", "kafka.consumer.group.id", "kafka.consumer.auto.offset.reset"}

// releaseOf returns the release that ran the file: what the option says, else what the spelling of
// its keys tells. 1.7 and later take zookeeperConnect, too, for the offsets there.
func releaseOf(a *Agent, option string) release {
	if minor, found := strings.CutPrefix(option, "1."); found {
		minor, _, _ = strings.Cut(minor, ".")
		if n, err := strconv.Atoi(minor); err == nil {
			return release(n)
		}
	}
	for _, s := range a.active(SourceKind) {
		if s.has("zookeeperConnect") && s.first(newKeys...) == "" {
			return 6
		}
	}
	return 9
}

// group is a queue in the making: sources that fill the same channels.
type group struct {
	sources  []*Component
	channels []*Component
	topics   map[*Component][]string // of channels that do not get all; nil: all
	headers  map[*Component]string   // filters of subscriptions
	keeps    map[*Component][]string // transforms of the deliveries of channels, behind the others
}

// keep adds a transform to the deliveries of a channel.
func (g *group) keep(ch *Component, transform string) {
	if g.keeps == nil {
		g.keeps = make(map[*Component][]string)
	}
	g.keeps[ch] = append(g.keeps[ch], transform)
}

// convert maps the topology: the sources of a group fill a queue, each of its channels is a
// subscription, and the sinks of a channel are one delivery, which may run several times.
func (c *converter) convert() {
	for _, g := range c.groups() {
		c.queue(g)
	}
	for _, s := range c.agent.active(SourceKind) {
		if s.Type() != kafkaSourceClass {
			c.foreign(s)
		}
	}
	for _, s := range c.agent.active(SinkKind) {
		if !s.keys["type"].used {
			c.unfed(s)
		}
	}
	for _, ch := range c.agent.active(ChannelKind) {
		c.channel(ch)
	}
	for _, g := range c.agent.components[GroupKind] {
		c.sinkGroup(g)
	}
}

// groups returns the queues: one for each set of channels that sources fill, and one for each
// Kafka channel without a source, which is a source itself.
func (c *converter) groups() []*group {
	var all []*group
	for _, s := range c.agent.active(SourceKind) {
		if s.Type() != kafkaSourceClass {
			continue
		}
		channels := c.agent.channelsOf(s)
		i := slices.IndexFunc(all, func(g *group) bool {
			return slices.Equal(g.channels, channels) && !c.routes(s) && !c.routes(g.sources[0])
		})
		if i < 0 {
			all = append(all, &group{channels: channels})
			i = len(all) - 1
		}
		all[i].sources = append(all[i].sources, s)
	}
	for _, ch := range c.agent.active(ChannelKind) {
		fed := slices.ContainsFunc(c.agent.active(SourceKind), func(s *Component) bool {
			return s.Type() == kafkaSourceClass && slices.Contains(c.agent.channelsOf(s), ch)
		})
		if !fed && isKafkaChannel(ch) && len(c.agent.sinksOf(ch)) > 0 {
			all = append(all, &group{sources: []*Component{ch}, channels: []*Component{ch}})
		}
	}
	return all
}

// queue writes the queue of a group with what fills and what empties it.
func (c *converter) queue(g *group) {
	g.channels = slices.DeleteFunc(slices.Clone(g.channels), c.onlyForeignSinks)
	if len(g.channels) == 0 {
		for _, s := range g.sources {
			for _, k := range s.order {
				s.say(k.name, Unsupported, "none of the sinks behind %s is one of Spillway's: it delivers to HDFS, to directories and to Kafka", s.Name)
			}
		}
		return
	}
	c.converted = true
	if c.queued == nil {
		c.queued = make(map[*Component]bool)
	}
	for _, ch := range g.channels {
		c.queued[ch] = true
	}
	name := identifier(g.channels[0].Name)
	queues := c.root.child("buffer").child("queues")
	name = unused(name, func(n string) bool {
		return slices.ContainsFunc(queues.children, func(q *node) bool { return q.key == n })
	})
	for _, s := range g.sources {
		c.source(s, name, g)
	}
	q := queues.child(name)
	c.queueBounds(q, g)
	for _, ch := range g.channels {
		key := unused(identifier(ch.Name), func(n string) bool { return hasChild(q.child("subscriptions"), n) })
		sub := q.child("subscriptions").child(key)
		sub.comment(fmt.Sprintf("Flume's channel %s", ch.Name))
		if topics := g.topics[ch]; topics != nil {
			sub.list("topics", topics, "what the selector sent to this channel")
		}
		if filter := g.headers[ch]; filter != "" {
			h := sub.child("headers")
			h.comment("what the selector sent to this channel")
			h.items = []string{filter}
		}
		if c.optional(g, ch) {
			sub.plain("required", "false", "selector.optional: what this channel misses holds nobody back")
			sub.text("on_full", "drop_oldest", "Flume dropped the newest events when the channel was full; this drops the oldest")
		}
		c.sinks(g, ch, q, name, key)
	}
}

// onlyForeignSinks reports whether a channel has sinks, and Spillway has none of them: such a
// channel gets no subscription, which nobody would empty.
func (c *converter) onlyForeignSinks(ch *Component) bool {
	sinks := c.agent.sinksOf(ch)
	return len(sinks) > 0 && !slices.ContainsFunc(sinks, knownSink)
}

// head is the comment that the file begins with.
func (c *converter) head() string {
	return fmt.Sprintf(`# Spillway's pipeline for agent %s of Flume %s, written by spillway import-flume.
# Read the comments: they say where Flume's defaults differ from what a new pipeline would have.
# spillway check -c FILE checks the file; docs/configuration.md explains every key.
`, c.agent.Name, c.release)
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9]+`)

// identifier makes a name of Spillway's of a component's.
func identifier(name string) string {
	name = strings.Trim(notInNames.ReplaceAllString(name, "-"), "-")
	if name == "" {
		return "x"
	}
	return strings.TrimRight(name[:min(len(name), 60)], "-")
}

// unused returns name, or name with a number behind it, such that taken says no.
func unused(name string, taken func(string) bool) string {
	for n, candidate := 2, name; ; n++ {
		if !taken(candidate) {
			return candidate
		}
		candidate = fmt.Sprintf("%s-%d", name, n)
	}
}
