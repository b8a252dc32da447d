package kerberos

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	krbconfig "github.com/jcmturner/gokrb5/v8/config"
)

// maxIncludes bounds the files of a krb5.conf, which may include itself.
const maxIncludes = 100

// loadKrb5 reads a krb5.conf with all that it includes, which the library passes over, and with
// the parts of a section put together, of which the library takes the last.
func loadKrb5(path string) (*krbconfig.Config, error) {
	s := sections{lines: make(map[string][]string)}
	if err := s.read(path); err != nil {
		return nil, fmt.Errorf("read krb5.conf: %w", err)
	}
	var text strings.Builder
	for _, name := range []string{"libdefaults", "realms", "domain_realm"} {
		fmt.Fprintf(&text, "[%s]\n%s\n", name, strings.Join(s.lines[name], "\n"))
	}
	conf, err := parseKrb5(text.String())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	notRenewable(conf)
	return conf, nil
}

// parseKrb5 makes an error of the library's panics about lines that are not whole.
func parseKrb5(text string) (conf *krbconfig.Config, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed: %v", p)
		}
	}()
	return krbconfig.NewFromString(text)
}

type sections struct {
	lines map[string][]string
	files int
}

var (
	section = regexp.MustCompile(`^\[([^]]*)\]`)
	// fileName is what a file in a directory must be called to be included.
	fileName = regexp.MustCompile(`^[A-Za-z0-9_-]+$|^[^.].*\.conf$`)
)

func (s *sections) read(path string) error {
	if s.files++; s.files > maxIncludes {
		return fmt.Errorf("%s: more than %d files are included", path, maxIncludes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	current := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if m := section.FindStringSubmatch(line); m != nil {
			current = strings.TrimSpace(m[1])
			continue
		}
		directive, argument, _ := strings.Cut(line, " ")
		argument = strings.TrimSpace(argument)
		switch {
		case directive == "include" && argument != "" && argument[0] != '=':
			err = s.read(argument)
		case directive == "includedir" && argument != "" && argument[0] != '=':
			err = s.readDir(argument)
		default:
			s.lines[current] = append(s.lines[current], line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sections) readDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() || !fileName.MatchString(e.Name()) {
			continue
		}
		if err := s.read(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
