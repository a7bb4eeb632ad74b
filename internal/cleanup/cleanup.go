// Package cleanup unwinds a set-up of several steps.
//
// Invariants: what was added last runs first; every function runs at most
// once, whatever the others return; after Release nothing runs.
//
//	var undo cleanup.Stack
//	defer func() { err = errors.Join(err, undo.Run()) }()
//	...
//	undo.Add(func() error { return unix.Unmount(dir, 0) })
//	...
//	undo.Release() // success: keep what was made
package cleanup

import "errors"

// Stack holds functions that undo steps already taken. The zero value is
// empty and ready. It is meant for one goroutine.
type Stack struct {
	fns []func() error
}

// Add pushes a function that undoes the step just taken.
func (s *Stack) Add(fn func() error) { s.fns = append(s.fns, fn) }

// Release forgets all functions, because the set-up has succeeded.
func (s *Stack) Release() { s.fns = nil }

// Run calls the functions, last added first, empties the stack and returns
// their errors joined.
func (s *Stack) Run() error {
	fns := s.fns
	s.fns = nil
	var errs []error
	for i := len(fns) - 1; i >= 0; i-- {
		if err := fns[i](); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
