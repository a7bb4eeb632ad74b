package cleanup

import (
	"errors"
	"slices"
	"testing"
)

func TestRunReversesAndJoins(t *testing.T) {
	var s Stack
	var order []int
	e1, e3 := errors.New("one"), errors.New("three")
	s.Add(func() error { order = append(order, 1); return e1 })
	s.Add(func() error { order = append(order, 2); return nil })
	s.Add(func() error { order = append(order, 3); return e3 })
	err := s.Run()
	if !errors.Is(err, e1) || !errors.Is(err, e3) {
		t.Fatalf("Run() = %v, want both errors", err)
	}
	if !slices.Equal(order, []int{3, 2, 1}) {
		t.Fatalf("order %v", order)
	}
	if err := s.Run(); err != nil || len(order) != 3 {
		t.Fatalf("second Run() = %v, order %v; want nothing to run", err, order)
	}
}

func TestReleaseKeepsEffects(t *testing.T) {
	var s Stack
	s.Add(func() error { t.Error("ran after Release"); return nil })
	s.Release()
	if err := s.Run(); err != nil {
		t.Fatal(err)
	}
}
