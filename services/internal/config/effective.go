package config

import (
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// redacted is in the place of a secret.
const redacted = "(secret)"

// Effective returns the configuration as it is in force, as YAML: with defaults, and with what
// variables of the environment say. Secrets are left out, wherever they come from.
func (c *Config) Effective() ([]byte, error) {
	b, err := yaml.Marshal(shown(reflect.ValueOf(c).Elem()))
	if err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	return b, nil
}

// shown returns a value as the file would have it, nil for what is not there. Mappings are sorted
// by key. What is marked as a secret is not shown.
func shown(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return shown(v.Elem())
	case reflect.Struct:
		all := map[string]any{}
		for f := range configFields(v.Type()) {
			value := shown(v.FieldByIndex(f.Index))
			if value == nil {
				continue
			}
			if part, ok := value.(map[string]any); ok && len(part) == 0 && f.Type.Kind() == reflect.Struct {
				continue // none of its keys is set, and none has a default
			}
			if f.Tag.Get("secret") != "" && value != "" {
				value = redacted
			}
			all[keyOf(f)] = value
		}
		return all
	case reflect.Map:
		all := map[string]any{}
		for _, key := range v.MapKeys() {
			if value := shown(v.MapIndex(key)); value != nil {
				all[key.String()] = value
			}
		}
		if len(all) == 0 {
			return nil
		}
		return all
	case reflect.Slice:
		var all []any
		for i := range v.Len() {
			all = append(all, shown(v.Index(i)))
		}
		if len(all) == 0 {
			return nil
		}
		return all
	case reflect.String:
		return withoutUser(v.String())
	}
	switch x := v.Interface().(type) {
	case ByteSize:
		return x.String()
	case time.Duration:
		return text(x)
	}
	return v.Interface()
}

// withoutUser takes the password out of a URL.
func withoutUser(s string) string {
	if !strings.Contains(s, "://") || !strings.Contains(s, "@") {
		return s
	}
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), redacted)
	}
	return u.String()
}
