package rpc

import (
	"cmp"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// PageBytes bounds a page: clients of gRPC take 4 MiB unless they say otherwise.
const PageBytes = 3 << 20

// Page sorts all by key and returns those after token, at most size of them (0: byDefault) and
// 3 MiB, with the token of the next page. A token is the key of the last item before it.
func Page[T any, K cmp.Ordered](all []T, key func(T) K, size, byDefault int32, token K) (page []T, next K, err error) {
	if size < 0 {
		return nil, next, Error(codes.InvalidArgument, "BAD_PAGE_SIZE", 0, "page_size is %d: want 0 (for %d) or more", size, byDefault)
	}
	if size == 0 {
		size = byDefault
	}
	type keyed struct {
		key  K
		item T
	}
	var behind []keyed
	for _, item := range all {
		if k := key(item); cmp.Compare(k, token) > 0 {
			behind = append(behind, keyed{k, item})
		}
	}
	slices.SortFunc(behind, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	bytes := 0
	for _, x := range behind {
		if m, ok := any(x.item).(proto.Message); ok {
			bytes += proto.Size(m)
		}
		if n := len(page); n > 0 && (n == int(size) || bytes > PageBytes) {
			return page, next, nil
		}
		page, next = append(page, x.item), x.key
	}
	var end K
	return page, end, nil
}
