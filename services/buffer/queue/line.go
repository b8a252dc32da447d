package queue

// line is a queue of waiting things, any of which can leave it at any time in O(1). The zero line
// is empty and ready for use. It must not be copied.
type line[T any] struct {
	root node[T] // before the first and behind the last; its value means nothing
	n    int
}

// node is a thing's place in a line.
type node[T any] struct {
	line       *line[T] // nil while it waits nowhere
	prev, next *node[T]
	value      T
}

// push puts a node at the end. One that waits elsewhere leaves that line.
func (l *line[T]) push(n *node[T]) {
	n.leave()
	if l.root.next == nil {
		l.root.prev, l.root.next = &l.root, &l.root
	}
	n.line, n.prev, n.next = l, l.root.prev, &l.root
	n.prev.next, n.next.prev = n, n
	l.n++
}

// leave takes a node out of its line, if it is in one.
func (n *node[T]) leave() {
	if n.line == nil {
		return
	}
	n.prev.next, n.next.prev = n.next, n.prev
	n.line.n--
	n.line, n.prev, n.next = nil, nil, nil
}

// waits says whether the node is in a line.
func (n *node[T]) waits() bool { return n.line != nil }

// first is what has waited for longest.
func (l *line[T]) first() (value T, ok bool) {
	if l.n == 0 {
		return value, false
	}
	return l.root.next.value, true
}

// take moves everything of another line to the end of this one.
func (l *line[T]) take(other *line[T]) {
	for other.n > 0 {
		l.push(other.root.next)
	}
}
