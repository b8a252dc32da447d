package config

import "slices"

// HeaderFilter is a condition on a header of the records that a subscription wants. A record
// without the header counts as one with an empty value.
type HeaderFilter struct {
	Name string `yaml:"name"`
	// In are the values that the header must have one of.
	In []string `yaml:"in"`
	// NotIn are the values that the header must have none of.
	NotIn []string `yaml:"not_in"`
}

const (
	maxHeaderFilters = 16
	maxHeaderValues  = 1000
	maxHeaderBytes   = 256
)

// headers checks the header filters of a subscription.
func (k checker) headers(at string, all []HeaderFilter) {
	if len(all) > maxHeaderFilters {
		k.key(at, "has %d conditions; want at most %d", len(all), maxHeaderFilters)
		return
	}
	for i := range all {
		f, at := &all[i], index(at, i)
		k.present(at+".name", f.Name)
		if len(f.Name) > maxHeaderBytes {
			k.key(at+".name", "has %d bytes; want at most %d", len(f.Name), maxHeaderBytes)
		}
		if (len(f.In) == 0) == (len(f.NotIn) == 0) {
			k.key(at, "want either in or not_in, with at least one value")
		}
		k.headerValues(at+".in", f.In)
		k.headerValues(at+".not_in", f.NotIn)
	}
}

func (k checker) headerValues(at string, values []string) {
	if len(values) > maxHeaderValues {
		k.key(at, "has %d values; want at most %d", len(values), maxHeaderValues)
		return
	}
	for i, v := range values {
		if len(v) > maxHeaderBytes {
			k.key(index(at, i), "has %d bytes; want at most %d", len(v), maxHeaderBytes)
		}
		if slices.Index(values, v) < i {
			k.key(index(at, i), "%q is there twice; want it once", v)
		}
	}
}
