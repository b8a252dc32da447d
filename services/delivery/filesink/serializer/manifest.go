package serializer

import (
	"github.com/spillwayio/spillway/services/delivery/manifest"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// manifestEntries writes the entries of a manifest in the place of records.
type manifestEntries struct{}

// AppendRecord appends the entry of a record.
func (manifestEntries) AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte {
	return manifest.AppendEntry(b, at.Source.GetTopic(), at.Source.GetPartition(), at.Offset, r.TimestampMs, r.Value)
}
