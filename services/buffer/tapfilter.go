package buffer

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/cel-go/cel"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	// filterBytes bounds the text of a filter.
	filterBytes = 4 << 10
	// filterCost bounds an evaluation, in the units of CEL: about one for each operation, and for
	// each ten bytes that are looked at.
	filterCost = 1_000_000
	// filterText is how much of a key, a value or a header a filter sees.
	filterText = 1 << 20
)

// tapFilter says which records a tap shows. It is an expression of CEL, a language without loops,
// state or access to anything but its variables. One goroutine uses it at a time.
type tapFilter struct {
	program cel.Program
	now     tappedRecord // that the expression looks at
}

// tappedRecord gives an expression its variables. What costs something is made when it is asked
// for.
type tappedRecord struct {
	partition queue.Partition
	offset    int64
	record    *recordbatch.Record
}

// ResolveName implements cel.Activation.
func (r *tappedRecord) ResolveName(name string) (any, bool) {
	switch name {
	case "topic":
		return r.partition.Topic, true
	case "partition":
		return int64(r.partition.Number), true
	case "offset":
		return r.offset, true
	case "timestamp":
		return time.UnixMilli(r.record.TimestampMs), true
	case "key":
		return text(r.record.Key), true
	case "value":
		return text(r.record.Value), true
	case "headers":
		headers := make(map[string]string, len(r.record.Headers))
		for i := len(r.record.Headers) - 1; i >= 0; i-- { // the first of a name counts
			headers[text(r.record.Headers[i].Name)] = text(r.record.Headers[i].Value)
		}
		return headers, true
	case "json":
		var v any
		if len(r.record.Value) > filterText || json.Unmarshal(r.record.Value, &v) != nil || v == nil {
			return map[string]any{}, true
		}
		return v, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (*tappedRecord) Parent() cel.Activation { return nil }

// text is what a filter sees of b.
func text(b []byte) string { return strings.ToValidUTF8(string(b[:min(len(b), filterText)]), "\uFFFD") }

// newTapFilter compiles an expression. An empty one makes no filter.
func newTapFilter(expression string) (*tapFilter, error) {
	if expression == "" {
		return nil, nil
	}
	if len(expression) > filterBytes {
		return nil, fmt.Errorf("%w filter: has more than %d bytes", queue.ErrInvalid, filterBytes)
	}
	env, err := cel.NewEnv(cel.Variable("topic", cel.StringType), cel.Variable("partition", cel.IntType), cel.Variable("offset", cel.IntType),
		cel.Variable("timestamp", cel.TimestampType), cel.Variable("key", cel.StringType), cel.Variable("value", cel.StringType),
		cel.Variable("headers", cel.MapType(cel.StringType, cel.StringType)), cel.Variable("json", cel.DynType))
	if err != nil {
		return nil, fmt.Errorf("make an environment of CEL: %w", err)
	}
	ast, issues := env.Compile(expression)
	if err := issues.Err(); err != nil {
		return nil, fmt.Errorf("%w filter: %w", queue.ErrInvalid, err)
	}
	if out := ast.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("%w filter: it yields %s; want true or false", queue.ErrInvalid, out)
	}
	program, err := env.Program(ast, cel.CostLimit(filterCost))
	if err != nil {
		return nil, fmt.Errorf("%w filter: %w", queue.ErrInvalid, err)
	}
	return &tapFilter{program: program}, nil
}

// matches says whether the filter is true for a record.
func (f *tapFilter) matches(p queue.Partition, offset int64, r *recordbatch.Record) (bool, error) {
	f.now = tappedRecord{p, offset, r}
	out, _, err := f.program.Eval(&f.now)
	if err != nil {
		return false, err
	}
	yes, ok := out.Value().(bool)
	if !ok {
		return false, fmt.Errorf("it yields %s; want true or false", out.Type().TypeName())
	}
	return yes, nil
}
