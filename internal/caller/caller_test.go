package caller

import (
	"testing"

	"github.com/stretchr/testify/require"
)

type library struct{ found string }

//go:noinline
func (l *library) Destroy(store func()) { store() }

//go:noinline
func (l *library) Renew(store func()) { store() }

func (l *library) find() { l.found = Method(destroy, renew) }

const (
	destroy = "caller.(*library).Destroy"
	renew   = "caller.(*library).Renew"
)

func TestMethod(t *testing.T) {
	t.Parallel()
	l := &library{}
	l.Destroy(l.find)
	require.Equal(t, destroy, l.found)
	l.Renew(l.find)
	require.Equal(t, renew, l.found)
	l.find()
	require.Empty(t, l.found)
}

func TestMethod_NearestCounts(t *testing.T) {
	t.Parallel()
	l := &library{}
	l.Destroy(func() { l.Renew(l.find) })
	require.Equal(t, renew, l.found)
}

// inlined is small enough to be a part of its caller.
func (l *library) inlined() { l.find() }

func TestMethod_Inlined(t *testing.T) {
	t.Parallel()
	l := &library{}
	l.Destroy(func() { l.inlined() })
	require.Equal(t, destroy, l.found)
}

// A function whose name ends alike is another one, and so is the method of another type.
func TestMethod_WholeNames(t *testing.T) {
	t.Parallel()
	l := &library{}
	l.Destroy(func() { l.found = Method("(*library).Destroy", "library).Destroy", "caller.(*library).Destro") })
	require.Empty(t, l.found)
}

// Whatever stands between the library and its store, the stack is read to its end.
func TestMethod_Deep(t *testing.T) {
	t.Parallel()
	l := &library{}
	for depth := range 300 {
		l.found = ""
		l.Destroy(func() { wrapped(depth, l.find) })
		require.Equal(t, destroy, l.found, "%d calls in between", depth)
	}
}

func wrapped(depth int, f func()) {
	if depth == 0 {
		f()
		return
	}
	wrapped(depth-1, f)
}

func TestMethod_OtherGoroutine(t *testing.T) {
	t.Parallel()
	l := &library{}
	l.Destroy(func() {
		done := make(chan struct{})
		go func() { l.find(); close(done) }()
		<-done
	})
	require.Empty(t, l.found)
}

// middleware is inlined where it is called, and its literal is then named after that place.
func (l *library) middleware(next func()) func() {
	return func() { next() }
}

//go:noinline
func (l *library) notInlined(next func()) func() {
	return func() { next() }
}

func TestClosure(t *testing.T) {
	t.Parallel()
	l := &library{}
	var within, without bool
	l.middleware(func() {
		within, without = Closure("(*library).middleware"), Closure("(*library).notInlined")
	})()
	require.True(t, within)
	require.False(t, without)

	within = false
	install := func() func(func()) func() {
		return func(next func()) func() { return l.middleware(next) }
	}
	install()(func() { within = Closure("(*library).middleware") })()
	require.True(t, within, "inlined in a function literal")

	within = false
	l.notInlined(func() { within = Closure("(*library).notInlined") })()
	require.True(t, within)
	l.Destroy(func() { without = Closure("(*library).Destroy") })
	require.False(t, without, "the method itself")
}
