package transform

import (
	"errors"
	"strings"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestHeaderFilters looks at the first header of a name, as it is before the transforms.
func TestHeaderFilters(t *testing.T) {
	steps, err := New(parse(t, `set_header: {name: a, value: new}`))
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string, values ...string) *spillwayv1.HeaderFilter {
		return &spillwayv1.HeaderFilter{Name: name, Values: values}
	}
	notIn := func(name string, values ...string) *spillwayv1.HeaderFilter {
		return &spillwayv1.HeaderFilter{Name: name, Values: values, Except: true}
	}
	for _, test := range []struct {
		filters []*spillwayv1.HeaderFilter
		passes  bool
	}{
		{nil, true},
		{[]*spillwayv1.HeaderFilter{in("a", "1", "2")}, true},
		{[]*spillwayv1.HeaderFilter{in("a", "new")}, false},
		{[]*spillwayv1.HeaderFilter{in("a", "other")}, false}, // the second of the name
		{[]*spillwayv1.HeaderFilter{in("a", "1"), in("b", "x")}, false},
		{[]*spillwayv1.HeaderFilter{in("none", "x")}, false},
		{[]*spillwayv1.HeaderFilter{in("none", "", "x")}, true},
		{[]*spillwayv1.HeaderFilter{notIn("a", "1")}, false},
		{[]*spillwayv1.HeaderFilter{notIn("a", "2")}, true},
		{[]*spillwayv1.HeaderFilter{notIn("none", "x")}, true},
		{[]*spillwayv1.HeaderFilter{notIn("none", "x", "")}, false},
	} {
		for _, chain := range []*Chain{nil, steps} {
			r := &recordbatch.Record{Value: []byte("v"), Headers: []recordbatch.Header{{Name: []byte("a"), Value: []byte("1")}, {Name: []byte("a"), Value: []byte("other")}, {Name: []byte("b"), Value: []byte("2")}}}
			c := chain.Behind(test.filters).Clone()
			var err error
			if c != nil {
				err = c.Apply(r)
			}
			if passes := !errors.Is(err, ErrDropped); passes != test.passes {
				t.Errorf("%v: passes is %t, %v", test.filters, passes, err)
			}
			if done := strings.Contains(show(r), "a=new"); done != (chain != nil && test.passes) {
				t.Errorf("%v: the transforms made it %s", test.filters, show(r))
			}
		}
	}
}

// BenchmarkHeaderFilter must not allocate: it looks at every record of a subscription.
func BenchmarkHeaderFilter(b *testing.B) {
	c := (*Chain)(nil).Behind([]*spillwayv1.HeaderFilter{{Name: "type", Values: []string{"audit", "login"}}})
	r := recordbatch.Record{Value: []byte("v"), Headers: []recordbatch.Header{{Name: []byte("dc"), Value: []byte("fra")}, {Name: []byte("type"), Value: []byte("login")}}}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Apply(&r); err != nil {
			b.Fatal(err)
		}
	}
}
