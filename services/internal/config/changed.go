package config

import (
	"reflect"
	"slices"
)

// Changed returns the keys whose values differ between two configurations, sorted, as in
// buffer.queues.logs.disk.bytes. A part that only one of them has, and a list, is one key.
func Changed(a, b *Config) []string {
	var keys []string
	changed(reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), "", &keys)
	slices.Sort(keys)
	return keys
}

func changed(a, b reflect.Value, key string, keys *[]string) {
	below := func(name string) string {
		if key == "" {
			return name
		}
		return key + "." + name
	}
	switch {
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil():
		changed(a.Elem(), b.Elem(), key, keys)
	case a.Kind() == reflect.Struct:
		for f := range configFields(a.Type()) {
			changed(a.FieldByIndex(f.Index), b.FieldByIndex(f.Index), below(keyOf(f)), keys)
		}
	case a.Kind() == reflect.Map:
		for _, name := range a.MapKeys() {
			if other := b.MapIndex(name); other.IsValid() {
				changed(a.MapIndex(name), other, below(name.String()), keys)
			} else {
				*keys = append(*keys, below(name.String()))
			}
		}
		for _, name := range b.MapKeys() {
			if !a.MapIndex(name).IsValid() {
				*keys = append(*keys, below(name.String()))
			}
		}
	case a.Kind() == reflect.Slice && a.Len()+b.Len() == 0: // nil, or empty
	case !reflect.DeepEqual(a.Interface(), b.Interface()):
		*keys = append(*keys, key)
	}
}
