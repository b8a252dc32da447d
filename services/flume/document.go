package flume

import (
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Document is the properties of a file and what is wrong with its text.
type Document struct {
	Properties []Property
	Open       []Entry // keys that only a template engine could complete
	Remarks    []Remark
}

// Remark is about a line of the file that is not a property that Flume uses.
type Remark struct {
	Line int    `json:"line"`
	Text string `json:"text"`
	Fate Fate   `json:"fate"`
}

// ReadDocument reads a file of properties, or a Kubernetes ConfigMap that holds one, and names
// what only a template engine could fill in. It returns an error where it would have to guess: a
// ConfigMap with several files that look like Flume's.
func ReadDocument(data []byte) (*Document, error) {
	data, offset, err := fromConfigMap(data)
	if err != nil {
		return nil, err
	}
	properties, malformed, latin1 := ParseProperties(data)
	for i := range properties {
		properties[i].Line += offset
	}
	d := &Document{}
	if latin1 {
		d.Remarks = append(d.Remarks, Remark{1, "the file is not UTF-8; it was read as ISO-8859-1", Changed})
	}
	for _, line := range malformed {
		d.Remarks = append(d.Remarks, Remark{line + offset, `a \u escape without four hexadecimal digits: Java refuses the whole file`, Unsupported})
	}
	for _, p := range properties {
		if what := templateIn(p); what != "" {
			d.Open = append(d.Open, Entry{Line: p.Line, Key: trim(p.Key), Value: p.Value, Fate: Unsupported,
				Note: fmt.Sprintf("%s is not Flume's syntax: render the template first, then import the result", what)})
			continue
		}
		d.Properties = append(d.Properties, p)
	}
	return d, nil
}

var (
	templates = regexp.MustCompile(`\{\{.*?\}\}|\{%.*?%\}|</?#[a-zA-Z]+[^>]*>|<%.*?%>|@[A-Z][A-Z0-9_]*@`)
	// placeholder is <name> alone: <host>, <your-topic>.
	placeholder = regexp.MustCompile(`<[A-Za-z][A-Za-z0-9 _.-]*>`)
)

// expressionKey is a key whose value is a regular expression, or what stands for a match of one.
var expressionKey = regexp.MustCompile(`(?i)(regex|searchPattern|replaceString|matching|ignorePattern)$`)

// templateIn returns the first piece of a property that a template engine or a person has to
// replace, or "". Flume itself fills in ${NAME}, but only in values.
func templateIn(p Property) string {
	if found := reference.FindString(p.Key); found != "" {
		return found
	}
	if found := templates.FindString(p.Key + "=" + p.Value); found != "" {
		return found
	}
	if expressionKey.MatchString(p.Key) {
		return ""
	}
	return placeholder.FindString(p.Key + "=" + p.Value)
}

// explain adds the first key that only a template engine could complete to an error.
func (d *Document) explain(err error) error {
	if len(d.Open) == 0 {
		return err
	}
	return fmt.Errorf("%w; line %d: %s", err, d.Open[0].Line, d.Open[0].Note)
}

// fromConfigMap returns the file inside a Kubernetes ConfigMap and the number of lines before it,
// or the data as it is when it is no ConfigMap.
func fromConfigMap(data []byte) ([]byte, int, error) {
	if !configMap.Match(data) {
		return data, 0, nil
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil || root.Kind != yaml.DocumentNode {
		return nil, 0, fmt.Errorf("the file says kind: ConfigMap, but is no YAML: %v", err)
	}
	var files []*yaml.Node
	var names []string
	if values := member(root.Content[0], "data"); values != nil && values.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(values.Content); i += 2 {
			if agentFile.MatchString(values.Content[i+1].Value) {
				files = append(files, values.Content[i+1])
				names = append(names, values.Content[i].Value)
			}
		}
	}
	switch len(files) {
	case 0:
		return nil, 0, fmt.Errorf("the ConfigMap holds no Flume configuration: none of its values has a line such as agent.sources = …")
	case 1:
		offset := files[0].Line
		if files[0].Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
			offset--
		}
		return []byte(files[0].Value), offset, nil
	}
	return nil, 0, fmt.Errorf("the ConfigMap holds several Flume configurations (%s): save one of them as a file and import that", strings.Join(names, ", "))
}

var (
	configMap = regexp.MustCompile(`(?m)^kind:\s*["']?ConfigMap`)
	agentFile = regexp.MustCompile(`(?m)^\s*[^#!\s=:]+\.(sources|sinks|channels)\b`)
)

// member returns the value of a key of a mapping, or nil.
func member(node *yaml.Node, key string) *yaml.Node {
	if node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}
	return nil
}
