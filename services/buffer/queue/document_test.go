package queue

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestJournalIsDocumented looks for every key of the journal in docs/storage-format.md.
func TestJournalIsDocumented(t *testing.T) {
	document, err := os.ReadFile("../../../docs/storage-format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, journal, found := strings.Cut(string(document), "### Batch\n")
	if !found {
		t.Fatal("docs/storage-format.md has no section on batches")
	}
	seen := make(map[reflect.Type]bool)
	var check func(reflect.Type)
	check = func(v reflect.Type) {
		switch v.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			check(v.Elem())
		case reflect.Struct:
			if seen[v] {
				return
			}
			seen[v] = true
			for i := range v.NumField() {
				f := v.Field(i)
				key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if key != "" && !strings.Contains(journal, "`"+key+"`") {
					t.Errorf("docs/storage-format.md lacks %s of %s", key, v.Name())
				}
				if f.IsExported() {
					check(f.Type)
				}
			}
		}
	}
	for _, meta := range []any{batchMeta{}, change{}, snapshot{}} {
		check(reflect.TypeOf(meta))
	}
	if len(seen) < 10 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}
