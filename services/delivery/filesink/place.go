package filesink

import (
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// Placer returns a function that says in which directory a delivery writes a record that is
// delivered at now, behind its transforms. Host yields localhost, IP and FQDN. The function may be
// used by one goroutine at a time.
func Placer(cfg *config.HDFS, now time.Time, host func(what string) (string, error)) (func(*spillwayv1.SourcePartition, int64, *recordbatch.Record) string, error) {
	l, err := newLayout(cfg, "", host)
	if err != nil {
		return nil, err
	}
	l.now = func() time.Time { return now }
	return func(source *spillwayv1.SourcePartition, offset int64, r *recordbatch.Record) string {
		dir, _ := l.render(l.item(source, offset, r))
		return dir
	}, nil
}
