package rpc

import (
	"cmp"
	"slices"

	"google.golang.org/grpc/codes"
)

// Page sorts all by key and returns those after token, at most size of them (0: byDefault), with
// the token of the next page. A token is the key of the last item before it.
func Page[T any, K cmp.Ordered](all []T, key func(T) K, size, byDefault int32, token K) (page []T, next K, err error) {
	if size < 0 {
		return nil, next, Error(codes.InvalidArgument, "BAD_PAGE_SIZE", 0, "page_size is %d: want 0 (for %d) or more", size, byDefault)
	}
	if size == 0 {
		size = byDefault
	}
	slices.SortFunc(all, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	i, found := slices.BinarySearchFunc(all, token, func(item T, token K) int { return cmp.Compare(key(item), token) })
	if found {
		i++
	}
	page = all[i:]
	if len(page) > int(size) {
		page = page[:size]
		next = key(page[size-1])
	}
	return page, next, nil
}
