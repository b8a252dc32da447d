package transform

import (
	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// headerFilter is a condition on a header of the record as it is in Kafka.
type headerFilter struct {
	name   string
	values map[string]bool
	except bool
}

// passes reports whether a record fulfils the condition.
func (f *headerFilter) passes(r *recordbatch.Record) bool {
	value, _ := r.Header(f.name)
	return f.values[string(value)] != f.except
}

// Behind returns a chain that first leaves out the records that a subscription's filters do not
// let pass, and then does what c does. C may be nil, and is as it was; without filters it is the
// result.
func (c *Chain) Behind(filters []*spillwayv1.HeaderFilter) *Chain {
	if len(filters) == 0 {
		return c
	}
	all := &Chain{}
	if c != nil {
		all.steps = c.steps
	}
	for _, f := range filters {
		values := make(map[string]bool, len(f.Values))
		for _, v := range f.Values {
			values[v] = true
		}
		all.filters = append(all.filters, headerFilter{name: f.Name, values: values, except: f.Except})
	}
	return all
}
