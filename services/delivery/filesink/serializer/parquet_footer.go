package serializer

import (
	"encoding/binary"
	"fmt"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// footerTail is what ends a file, behind the metadata: its length, and "PAR1".
const footerTail = 8

// mendParquet takes out of file, in place, what the library writes and readers fail at:
//
//   - The column indexes of the columns without bounds: where page bounds are skipped, there is still an index, in which the
//     least and the greatest value of each page are empty. Readers that look there, as Spark does for a filter, would pass
//     over pages that have what they look for.
//   - The lengths of types that have none, such as 32 for an int32. Hive does not find a column that has one.
//
// The layout:
//
//	file: row groups | column indexes | offset indexes | metadata | its length: uint32 (little endian) | "PAR1"
//
// The indexes are those of each column of the first row group, then of the next. They stay without
// gaps, for the library reads those of a kind at once.
func mendParquet(file []byte) ([]byte, error) {
	tail := len(file) - footerTail
	begin := tail - int(binary.LittleEndian.Uint32(file[tail:]))
	var protocol thrift.CompactProtocol
	var metadata format.FileMetaData
	if err := thrift.Unmarshal(&protocol, file[begin:tail], &metadata); err != nil {
		return nil, fmt.Errorf("read the metadata of a Parquet file: %w", err)
	}
	if len(metadata.RowGroups) == 0 {
		return file, nil
	}
	for i := range metadata.Schema {
		metadata.Schema[i].TypeLength.Valid = false // no column is a FIXED_LEN_BYTE_ARRAY
	}
	kept := file[:metadata.RowGroups[0].Columns[0].ColumnIndexOffset]
	keep := func(offset *int64, length int32) {
		from := *offset
		*offset = int64(len(kept))
		kept = append(kept, file[from:from+int64(length)]...)
	}
	for _, group := range metadata.RowGroups {
		for i := range group.Columns {
			c := &group.Columns[i]
			switch i {
			case columnKey, columnValue, columnHeaderValue:
				c.ColumnIndexOffset, c.ColumnIndexLength = 0, 0
			default:
				keep(&c.ColumnIndexOffset, c.ColumnIndexLength)
			}
		}
	}
	for _, group := range metadata.RowGroups {
		for i := range group.Columns {
			keep(&group.Columns[i].OffsetIndexOffset, group.Columns[i].OffsetIndexLength)
		}
	}
	footer, err := thrift.Marshal(&protocol, &metadata)
	if err != nil {
		return nil, fmt.Errorf("write the metadata of a Parquet file: %w", err)
	}
	kept = append(kept, footer...)
	kept = binary.LittleEndian.AppendUint32(kept, uint32(len(footer)))
	return append(kept, "PAR1"...), nil
}
