package security

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// refusalsASecond bounds the lines about refusals: a flood of them must not hide the rest.
const refusalsASecond = 10

// Audit writes a line for each change and each refusal: msg=audit, caller, address, rpc, object,
// result. It never has a token or a request. Lines about changes are not left out.
type Audit struct {
	log      *slog.Logger
	most     int // lines about refusals in a second
	refusals atomic.Int64

	mu      sync.Mutex
	second  time.Time
	refused int // in that second
	left    int // refusals since the last line that were not written
}

func newAudit(log *slog.Logger) *Audit { return &Audit{log: log, most: refusalsASecond} }

// Changed notes a call that changed something, or tried to; result is a gRPC code.
func (a *Audit) Changed(caller Identity, address, rpc, object, result string) {
	a.log.Info("audit", "event", "change", "caller", caller.String(), "address", address, "rpc", rpc, "object", object, "result", result)
}

// Refused notes a call that was not let in, with the reason.
func (a *Audit) Refused(caller, address, rpc, object, reason string) {
	a.refusals.Add(1)
	a.mu.Lock()
	if now := time.Now().Truncate(time.Second); !now.Equal(a.second) {
		a.second, a.refused = now, 0
	}
	if a.refused++; a.refused > a.most {
		a.left++
		a.mu.Unlock()
		return
	}
	left := a.left
	a.left = 0
	a.mu.Unlock()
	args := []any{"event", "refusal", "caller", caller, "address", address, "rpc", rpc, "object", object, "result", reason}
	if left > 0 {
		args = append(args, "refusals_left_out_before", left)
	}
	a.log.Warn("audit", args...)
}
