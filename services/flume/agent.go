package flume

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kind is a kind of component.
type Kind string

// The kinds of components, as the keys of a file name them.
const (
	SourceKind  Kind = "sources"
	ChannelKind Kind = "channels"
	SinkKind    Kind = "sinks"
	GroupKind   Kind = "sinkgroups"
)

var kinds = []Kind{ChannelKind, SourceKind, SinkKind, GroupKind}

// Component is a source, channel, sink or sink group with its keys.
type Component struct {
	Kind Kind
	Name string
	// Inactive says why Flume does not run it; empty when it runs.
	Inactive string
	keys     map[string]*key
	order    []*key
}

// key is one key of a component. The last fate that is said of it counts.
type key struct {
	entry Entry
	name  string // below the component
	used  bool
	open  string // what is to be done about a reference in the value that nothing resolves
}

// value returns the value of the key, or "" when it is not there.
func (c *Component) value(name string) string {
	if k := c.keys[name]; k != nil {
		return k.entry.Value
	}
	return ""
}

// flag returns the value of a key as Java's Boolean.parseBoolean reads it, or missing when the key
// is not there.
func (c *Component) flag(name string, missing bool) bool {
	if !c.has(name) {
		return missing
	}
	return isTrue(c.value(name))
}

// isTrue is Java's Boolean.parseBoolean.
func isTrue(s string) bool { return strings.EqualFold(s, "true") }

// has reports whether the key is there.
func (c *Component) has(name string) bool { return c.keys[name] != nil }

// first returns the first of the names that the component has, or "".
func (c *Component) first(names ...string) string {
	for _, n := range names {
		if c.has(n) {
			return n
		}
	}
	return ""
}

// say sets the fate of a key that is there.
func (c *Component) say(name string, f Fate, format string, args ...any) {
	if k := c.keys[name]; k != nil {
		k.entry.Fate, k.entry.Note, k.used = f, fmt.Sprintf(format, args...), true
	}
}

// Type returns the type in the case that it is written in.
func (c *Component) Type() string { return c.value("type") }

// Agent is the configuration of one agent of a file.
type Agent struct {
	Name       string
	components map[Kind]map[string]*Component
	lists      map[Kind]*key
	loose      []Entry // keys that belong to no component
	remarks    []Remark
}

// Agents returns the agents of a document by name.
//
// Flume trims keys and values, ignores empty values, and keeps the last of two values of a key.
func Agents(d *Document) (map[string]*Agent, []Entry) {
	agents := make(map[string]*Agent)
	stray := slices.Clone(d.Open)
	for _, p := range lastWins(d.Properties, &stray) {
		name, value := trim(p.Key), trim(p.Value)
		agent, rest, found := strings.Cut(name, ".")
		e := Entry{Line: p.Line, Key: name, Value: value, Fate: Dropped}
		switch {
		case value == "":
			e.Note = "Flume ignores a key without a value"
		case !found || agent == "" || rest == "":
			e.Note = "no key of Flume: it has no name of an agent"
		default:
			if agents[agent] == nil {
				agents[agent] = &Agent{Name: agent, components: make(map[Kind]map[string]*Component), lists: make(map[Kind]*key)}
			}
			agents[agent].add(rest, e)
			continue
		}
		stray = append(stray, e)
	}
	for name, a := range agents {
		// Text such as "org.apache.x = y" looks like a key of an agent.
		if len(a.components) == 0 && len(a.lists) == 0 {
			stray = append(stray, a.loose...)
			delete(agents, name)
		}
	}
	return agents, stray
}

// lastWins returns the properties without those that a later one of the same key replaces, which
// it adds to dropped.
func lastWins(all []Property, dropped *[]Entry) []Property {
	last := make(map[string]int)
	for i, p := range all {
		last[trim(p.Key)] = i
	}
	var kept []Property
	for i, p := range all {
		if n := last[trim(p.Key)]; n != i {
			note := fmt.Sprintf("line %d sets the same key, and the last one counts", all[n].Line)
			*dropped = append(*dropped, Entry{Line: p.Line, Key: trim(p.Key), Value: p.Value, Fate: Dropped, Note: note})
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// add gives a key, without the name of the agent, to its component.
func (a *Agent) add(rest string, e Entry) {
	for _, kind := range kinds {
		if rest == string(kind) {
			a.lists[kind] = &key{entry: e, name: rest}
			return
		}
		below, found := strings.CutPrefix(rest, string(kind)+".")
		if !found {
			continue
		}
		name, k, found := strings.Cut(below, ".")
		if !found || name == "" || k == "" {
			break
		}
		a.component(kind, name).set(k, e)
		return
	}
	e.Note = "Flume ignores it: want sources, channels, sinks or sinkgroups after the agent's name"
	if near := nearKind(rest); near != "" {
		e.Note += "; did you mean " + near + "?"
	}
	a.loose = append(a.loose, e)
}

// nearKind returns the kind that the first word of a key was meant to be, or "".
func nearKind(rest string) string {
	word, _, _ := strings.Cut(rest, ".")
	for _, kind := range kinds {
		if strings.EqualFold(word, string(kind)) || word+"s" == string(kind) {
			return string(kind)
		}
	}
	return ""
}

func (a *Agent) component(kind Kind, name string) *Component {
	if a.components[kind] == nil {
		a.components[kind] = make(map[string]*Component)
	}
	c := a.components[kind][name]
	if c == nil {
		c = &Component{Kind: kind, Name: name, keys: make(map[string]*key)}
		a.components[kind][name] = c
	}
	return c
}

func (c *Component) set(name string, e Entry) {
	k := &key{entry: e, name: name}
	c.keys[name] = k
	c.order = append(c.order, k)
}

// left returns the entries of an agent that is not imported.
func (a *Agent) left() []Entry {
	all := slices.Clone(a.loose)
	for _, l := range a.lists {
		all = append(all, l.entry)
	}
	for _, components := range a.components {
		for _, c := range components {
			for _, k := range c.order {
				all = append(all, k.entry)
			}
		}
	}
	for i := range all {
		all[i].Fate, all[i].Note = NotNeeded, fmt.Sprintf("it is of agent %s: import that with --agent %[1]s", a.Name)
	}
	return all
}

// validate applies Flume's rules: it marks the components that Flume does not run, with the
// reason. It returns an error when Flume runs nothing of the agent.
func (a *Agent) validate() error {
	for _, kind := range kinds {
		listed := a.listed(kind)
		for name, c := range a.components[kind] {
			if !slices.Contains(listed, name) {
				c.Inactive = fmt.Sprintf("%s is not in the list %s.%s", name, a.Name, kind)
				if strings.Contains(strings.Join(listed, " "), name+",") || slices.Contains(listed, strings.TrimSuffix(name, ",")+",") {
					c.Inactive += ", which has a comma: Flume separates names by white space only"
				}
			}
		}
		for _, name := range listed {
			if a.components[kind][name] == nil {
				a.remarks = append(a.remarks, Remark{a.lists[kind].entry.Line, fmt.Sprintf("%s.%s names %s, which has no keys: Flume drops it", a.Name, kind, name), Dropped})
			}
		}
	}
	for _, c := range a.components[ChannelKind] {
		if c.Inactive == "" && c.Type() == "" {
			c.Inactive = "it has no type"
		}
	}
	for _, c := range a.components[SourceKind] {
		if c.Inactive == "" && len(a.channelsOf(c)) == 0 {
			c.Inactive = "none of its channels is active"
		}
		if c.Inactive == "" && c.Type() == "" {
			c.Inactive = "it has no type"
		}
	}
	for _, c := range a.components[SinkKind] {
		if c.Inactive != "" {
			continue
		}
		switch name := c.value("channel"); {
		case name == "" && c.has("channels"):
			c.Inactive = "it has channels where a sink has channel"
		case name == "":
			c.Inactive = "it has no channel"
		case a.components[ChannelKind][name] == nil || a.components[ChannelKind][name].Inactive != "":
			c.Inactive = fmt.Sprintf("its channel %s is not active", name)
		case c.Type() == "":
			c.Inactive = "it has no type"
		}
	}
	if len(a.active(ChannelKind)) == 0 {
		return a.dead("has no channel that Flume would run")
	}
	if len(a.active(SourceKind)) == 0 && len(a.active(SinkKind)) == 0 {
		return a.dead("has neither a source nor a sink that Flume would run")
	}
	return nil
}

// dead says of the keys of an agent that Flume starts nothing of it, and returns that as an error.
func (a *Agent) dead(why string) error {
	for _, l := range a.lists {
		l.entry.Fate, l.entry.Note, l.used = Dropped, "Flume starts nothing of the agent", true
	}
	for _, components := range a.components {
		for _, c := range components {
			if c.Inactive == "" {
				c.Inactive = "it starts nothing of the agent"
			}
		}
	}
	return fmt.Errorf("agent %s %s: Flume starts nothing of it", a.Name, why)
}

// listed returns the names in the list of a kind.
func (a *Agent) listed(kind Kind) []string {
	if l := a.lists[kind]; l != nil {
		return fields(l.entry.Value)
	}
	return nil
}

// active returns the components that Flume runs, in the order of their list.
func (a *Agent) active(kind Kind) []*Component {
	var all []*Component
	for _, name := range a.listed(kind) {
		if c := a.components[kind][name]; c != nil && c.Inactive == "" && !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}

// channelsOf returns the active channels that a source puts its events into.
func (a *Agent) channelsOf(source *Component) []*Component {
	var all []*Component
	for _, name := range fields(source.value("channels")) {
		if c := a.components[ChannelKind][name]; c != nil && c.Inactive == "" && !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}

// sinksOf returns the active sinks that take from a channel.
func (a *Agent) sinksOf(channel *Component) []*Component {
	var all []*Component
	for _, s := range a.active(SinkKind) {
		if s.value("channel") == channel.Name {
			all = append(all, s)
		}
	}
	return all
}

// report returns the fate of every key of the agent. What was said of the keys of an active
// component are all that Flume has: others have no effect in Flume.
func (a *Agent) report(stray []Entry) *Report {
	r := &Report{Agent: a.Name, Entries: slices.Concat(stray, a.loose), Remarks: a.remarks}
	for kind, l := range a.lists {
		switch {
		case l.open != "":
			l.entry.Fate, l.entry.Note = Unsupported, l.open
		case !l.used:
			l.entry.Fate, l.entry.Note = Carried, "the components that Flume runs"
			if kind == GroupKind {
				l.entry.Fate, l.entry.Note = NotNeeded, "the sinks of a channel share its subscription"
			}
		}
		r.Entries = append(r.Entries, l.entry)
	}
	for _, kind := range kinds {
		for _, name := range slices.Sorted(maps.Keys(a.components[kind])) {
			c := a.components[kind][name]
			for _, k := range c.order {
				if c.keys[k.name] != k {
					continue
				}
				e := k.entry
				switch {
				case c.Inactive != "":
					e.Fate, e.Note = Dropped, fmt.Sprintf("Flume does not run %s %s: %s", singular(kind), name, c.Inactive)
				case k.open != "":
					e.Fate, e.Note = Unsupported, k.open
				case !k.used:
					e.Fate, e.Note = Dropped, "Flume has no such key and ignores it"
					if near := nearKey(c, k.name); near != "" {
						e.Fate, e.Note = Dropped, fmt.Sprintf("Flume has no such key and ignores it; did you mean %s?", near)
					}
				}
				r.Entries = append(r.Entries, e)
			}
		}
	}
	for i, e := range r.Entries {
		r.Entries[i].Value = redacted(e.Key, e.Value)
	}
	r.sort()
	return r
}

func singular(kind Kind) string { return strings.TrimSuffix(string(kind), "s") }
