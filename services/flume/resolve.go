package flume

import (
	"fmt"
	"regexp"
	"strings"
)

var reference = regexp.MustCompile(`\$\{([^}]*)\}`)

// resolve puts the values of environment variables into the values of keys, as Flume does when
// its EnvVarResolverProperties or, from 1.10, ${env:NAME} is used. The report has what stays open.
func (a *Agent) resolve(lookup func(string) (string, bool)) {
	for _, l := range a.lists {
		l.resolve(lookup)
	}
	for _, components := range a.components {
		for _, c := range components {
			for _, k := range c.order {
				k.resolve(lookup)
			}
		}
	}
}

func (k *key) resolve(lookup func(string) (string, bool)) {
	k.entry.Value = reference.ReplaceAllStringFunc(k.entry.Value, func(ref string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(ref, "${"), "}")
		name = strings.TrimPrefix(name, "env:")
		if strings.ContainsAny(name, ":[") {
			k.open = fmt.Sprintf("%s is filled in by Flume, from something that is no variable of the environment: write the value", ref)
			return ref
		}
		if lookup != nil {
			if value, found := lookup(name); found {
				return value
			}
		}
		k.open = fmt.Sprintf("%s is not set: import with the variable in the environment (--env), or write the value", ref)
		return ref
	})
}
