// Package caller tells which method of a session library has called its store. A library's store
// has one Delete, which the library calls in a logout and in a renewal alike, and the two must end
// the session in different ways. Which of the two it is cannot be told from what the library does
// later: a logout may store a new session too.
//
// A store of the program may stand in between, as long as it calls this one in the same goroutine.
package caller

import (
	"runtime"
	"strings"
)

// Method returns the nearest caller's name among names, which are of the form
// "package.(*Type).Method" with the last element of the package's path, or "" if none of them is on
// the stack.
func Method(names ...string) string {
	for function := range functions {
		for _, name := range names {
			if strings.HasSuffix(function, "/"+name) {
				return name
			}
		}
	}
	return ""
}

// Closure reports whether a function literal in method, which is of the form "(*Type).Method", is
// on the stack. Where the compiler has inlined the method, the literal has the name of that place
// before its own: package.method.func1, place.method.func2, or place.func1.method.2.
func Closure(method string) bool {
	for function := range functions {
		if strings.Contains(function, "."+method+".") {
			return true
		}
	}
	return false
}

// functions yields the names of the functions on the stack, nearest first.
func functions(yield func(name string) bool) {
	var stack [16]uintptr // whoever is looked for is near, as a rule
	for skip := 2; ; skip += len(stack) {
		n := runtime.Callers(skip, stack[:])
		if n == 0 {
			return
		}
		frames := runtime.CallersFrames(stack[:n])
		for more := true; more; {
			var frame runtime.Frame
			frame, more = frames.Next()
			if !yield(frame.Function) {
				return
			}
		}
		if n < len(stack) {
			return
		}
	}
}
