package serializer

import (
	"fmt"
	"os"

	"github.com/hamba/avro/v2"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// avroValues writes containers of the records' values, which are Avro data of one schema, as
// Flume's AvroEventSerializer does.
type avroValues struct{ avroEvent }

// maxSchemaBytes bounds the file of a schema.
const maxSchemaBytes = 1 << 20

// newAvroValues reads the file of the schema.
func newAvroValues(file, compression string) (Format, error) {
	schema, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("avro_schema: %w", err)
	}
	if len(schema) > maxSchemaBytes {
		return nil, fmt.Errorf("avro_schema: %s has %d bytes; want at most %d", file, len(schema), maxSchemaBytes)
	}
	if _, err := avro.ParseBytes(schema); err != nil {
		return nil, fmt.Errorf("avro_schema: %s is no schema of Avro: %w", file, err)
	}
	container, err := newAvroContainer(string(schema), compression)
	return avroValues{container}, err
}

// AppendRecord appends the value as it is.
func (avroValues) AppendRecord(b []byte, _ Position, r *recordbatch.Record) []byte {
	return append(b, r.Value...)
}
