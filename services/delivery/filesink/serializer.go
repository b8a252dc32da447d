package filesink

import (
	"fmt"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// serializer turns records into the bytes of a file. It keeps no state: a file may be cut after any
// commit, so what it appends for one record must not depend on those before it.
type serializer interface {
	// appendRecord appends r to b and returns it. Nothing of r is retained.
	appendRecord(b []byte, r *recordbatch.Record) []byte
}

func newSerializer(cfg *config.HDFS) (serializer, error) {
	if cfg.Serializer != "text" {
		return nil, fmt.Errorf("serializer: unknown value %q; supported: text", cfg.Serializer)
	}
	return text{newline: cfg.AppendNewline}, nil
}

// text writes values as they are, each one followed by a line feed if newline. A null value is an
// empty one.
type text struct{ newline bool }

func (t text) appendRecord(b []byte, r *recordbatch.Record) []byte {
	b = append(b, r.Value...)
	if t.newline {
		b = append(b, '\n')
	}
	return b
}
