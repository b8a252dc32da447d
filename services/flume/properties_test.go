package flume

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// propertyFiles are files that naive parsers read otherwise than Java.
var propertyFiles = []string{
	"",
	"a=b",
	"a = b \n",
	"  a\t:\tb",
	"a b c",
	"a",
	"a=",
	"=b",
	"= b\n: c\n",
	"# a=b\n! c=d\ne=f # not a comment",
	"a = b\\\n   c\\\n\td\n",
	"a = b\\\\\nc = d",
	"a = b\\\n# not a comment\n",
	"\\\n# a comment\nx=y",
	"\\\n\nx=y",
	"a = \\\n",
	"a = b\\",
	"a\\ b = c\\:d\\=e",
	"a\\=b=c",
	"a=\\u0041\\u00e4\\ud83d\\ude00",
	"a=\\q\\t\\n\\r\\f\\\\",
	"a=b\r\nc=d\re=f",
	"a=b\\\r\n  c\r\nd=e",
	"ä=ö ü",
	"a==b",
	"a=:b",
	"a : = b",
	"a\fb",
	"a=b\x00c",
	"k.sinks.s.hdfs.path = hdfs://host:8020/x/%{topic}/%Y-%m-%d   \n",
	"key with spaces = v",
	"a=\\u12",
	"a=\\u12g4",
}

func TestPropertiesAreReadAsText(t *testing.T) {
	got, malformed, latin1 := ParseProperties([]byte("\uFEFF# c\n a : b\\\n  c\na=2\nbad=\\uzzzz\n"))
	want := []Property{{"a", "bc", 2}, {"a", "2", 4}, {"bad", `\uzzzz`, 5}}
	if !slices.Equal(got, want) || !slices.Equal(malformed, []int{5}) || latin1 {
		t.Errorf("got %v, malformed %v, ISO-8859-1 %v; want %v", got, malformed, latin1, want)
	}
	if got, _, latin1 := ParseProperties([]byte("a=\xe4")); !latin1 || got[0].Value != "ä" {
		t.Errorf("a file in ISO-8859-1: %v, %v", got, latin1)
	}
}

// TestPropertiesAreThoseOfJava compares with java.util.Properties itself, over files that trip
// naive parsers and over random ones of the characters that matter.
func TestPropertiesAreThoseOfJava(t *testing.T) {
	java, err := exec.LookPath("java")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("NOT RUN: the comparison with java.util.Properties, which needs Java: apt-get install openjdk-17-jdk-headless")
	}
	files := slices.Clone(propertyFiles)
	random := rand.New(rand.NewPCG(1, 2))
	const alphabet = "ab=: \t\f\\\\\n\r#!u0041"
	for range 2000 {
		var b strings.Builder
		for range random.IntN(24) {
			b.WriteByte(alphabet[random.IntN(len(alphabet))])
		}
		files = append(files, b.String())
	}
	dir := t.TempDir()
	args := []string{"testdata/Dump.java"}
	for i, text := range files {
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	out, err := exec.Command(java, args...).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, err.(*exec.ExitError).Stderr)
	}
	answers := strings.Split(string(out), "end\n")
	for i, text := range files {
		properties, malformed, _ := ParseProperties([]byte(text))
		var got strings.Builder
		for _, p := range properties {
			fmt.Fprintf(&got, "x%x x%x\n", p.Key, p.Value)
		}
		if len(malformed) > 0 {
			got.Reset()
			got.WriteString("malformed\n")
		}
		// Java makes an empty key of a backslash at the very end of a file; Flume ignores it.
		const empty = "x x\n"
		if want := answers[i]; strings.ReplaceAll(got.String(), empty, "") != strings.ReplaceAll(want, empty, "") {
			t.Errorf("%q: got\n%swant, as Java says,\n%s", text, got.String(), want)
		}
	}
}

func FuzzImport(f *testing.F) {
	for _, text := range propertyFiles {
		f.Add(text)
	}
	for _, c := range importCases {
		f.Add(c.file)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Import([]byte(text), Options{Brokers: []string{"kafka:9092"}})
		if err != nil {
			return
		}
		if !utf8.ValidString(r.YAML) {
			t.Errorf("the pipeline is not UTF-8: %q", r.YAML)
		}
		for _, e := range r.Report.Entries {
			if e.Fate == "" || e.Note == "" || e.Line == 0 {
				t.Errorf("the fate of %+v is open", e)
			}
		}
	})
}
