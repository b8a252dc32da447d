package security

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

const (
	// fresh is for how long a file is taken to be as it was.
	fresh = time.Second
	// maxFileBytes bounds files of tokens and keys.
	maxFileBytes = 1 << 20
)

// file is a small file that may change, also by a link above it. Content that cannot be read
// leaves what was there before in use.
type file struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	data    []byte
	looked  time.Time
	failing bool
}

// content returns what is in the file, as of the last second. Callers must not change it. Its
// error is of a file that was never read.
func (f *file) content() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.looked.IsZero() && time.Since(f.looked) < fresh {
		return f.data, nil
	}
	data, err := readSmall(f.path)
	switch {
	case err == nil:
		if f.data != nil && !bytes.Equal(data, f.data) {
			f.log.Info("credentials were read again", "file", f.path)
		}
		f.data = data
	case f.data == nil:
		return nil, err
	case !f.failing:
		f.log.Error("credentials cannot be read; going on with those before", "file", f.path, "error", err)
	}
	f.failing, f.looked = err != nil, time.Now()
	return f.data, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFileBytes)
	}
	return data, nil
}

// staticTokens are those of a file, of which memory has the hashes only.
type staticTokens struct {
	name   string
	grants []config.Grant
	path   string
	log    *slog.Logger

	mu      sync.Mutex
	hashes  [][sha256.Size]byte
	looked  time.Time
	failing bool
}

const (
	// minTokenBytes is of tokens that nobody guesses: 128 bits in base64.
	minTokenBytes = 22
	maxTokens     = 1000
)

func newStaticTokens(name, path string, grants []config.Grant, log *slog.Logger) (*staticTokens, error) {
	t := &staticTokens{name: name, path: path, grants: grants, log: log}
	var err error
	if t.hashes, err = readTokens(path); err != nil {
		return nil, err
	}
	t.looked = time.Now()
	return t, nil
}

// readTokens hashes the tokens of a file: one a line; empty lines and comments (#) do not count.
func readTokens(path string) ([][sha256.Size]byte, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	var all [][sha256.Size]byte
	line := 0
	for text := range strings.Lines(string(data)) {
		line++
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		if len(text) < minTokenBytes {
			return nil, fmt.Errorf("%s:%d: the token has %d characters; want %d or more, such as openssl rand -base64 32 makes", path, line, len(text), minTokenBytes)
		}
		all = append(all, sha256.Sum256([]byte(text)))
	}
	if len(all) > maxTokens {
		return nil, fmt.Errorf("%s has %d tokens; want at most %d", path, len(all), maxTokens)
	}
	return all, nil
}

// has compares in a time that does not depend on the tokens.
func (t *staticTokens) has(token string) bool {
	t.mu.Lock()
	if time.Since(t.looked) >= fresh {
		hashes, err := readTokens(t.path)
		switch {
		case err == nil:
			t.hashes = hashes
		case !t.failing:
			t.log.Error("tokens cannot be read; going on with those before", "name", t.name, "error", err)
		}
		t.failing, t.looked = err != nil, time.Now()
	}
	hashes := t.hashes
	t.mu.Unlock()
	hash := sha256.Sum256([]byte(token))
	found := 0
	for i := range hashes {
		found |= subtle.ConstantTimeCompare(hashes[i][:], hash[:])
	}
	return found == 1
}
