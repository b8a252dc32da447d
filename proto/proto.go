// Package proto has the API's source files, for whoever shows them to people.
package proto

import "embed"

// Files are spillway/v1 and what it imports, but for google/protobuf.
//
//go:embed spillway google
var Files embed.FS
