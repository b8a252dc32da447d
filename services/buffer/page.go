package buffer

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// partitionsPerPage is the size of a page of partitions when none is asked for.
const partitionsPerPage = 1000

// position is what a page token is made of: the last item of the page before.
type position struct {
	Queue        string          `json:"q,omitempty"`
	Shard        int             `json:"n,omitempty"`
	Subscription string          `json:"s,omitempty"`
	Partition    queue.Partition `json:"p"`
	Offset       int64           `json:"o,omitempty"`
}

func (p position) token() string { return base64.RawURLEncoding.EncodeToString(mustJSON(p)) }

func mustJSON(p position) []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("encode page token: %v", err)) // strings and numbers
	}
	return b
}

// parseToken is the opposite of position.token; an empty token is the beginning.
func parseToken(token string) (p position, err error) {
	if token == "" {
		return p, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("%w page_token %.40q: want next_page_token of the response before", queue.ErrInvalid, token)
	}
	return p, nil
}

// page takes items as messages until size of them (0: partitionsPerPage), or rpc.PageBytes, are
// there. The token is that of the next page, or empty when there are no more.
func page[V any, M proto.Message](items iter.Seq[V], size int32, message func(V) M, at func(V) position) (taken []M, token string, err error) {
	if size < 0 {
		return nil, "", fmt.Errorf("%w page_size %d: want 0 (for %d) or more", queue.ErrInvalid, size, partitionsPerPage)
	}
	if size == 0 {
		size = partitionsPerPage
	}
	bytes := 0
	var last position
	for v := range items {
		m := message(v)
		bytes += proto.Size(m)
		if len(taken) > 0 && (len(taken) == int(size) || bytes > rpc.PageBytes) {
			return taken, last.token(), nil
		}
		taken, last = append(taken, m), at(v)
	}
	return taken, "", nil
}
