package layered

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestNobodyWaitsForever: a pull whose registry sends a byte now and then does
// not keep a layer from the pulls of others.
func TestNobodyWaitsForever(t *testing.T) {
	s := &Store{flights: map[digest.Digest]*flight{}}
	blob := digest.FromString("shared")
	_, slow, err := s.lead(t.Context(), blob, time.Hour)
	if slow == nil || err != nil {
		t.Fatalf("the first does not lead: %v", err)
	}
	st, f, err := s.lead(t.Context(), blob, time.Millisecond)
	if st != nil || f != nil || err != nil {
		t.Fatalf("%v %v %v", st, f, err)
	}
	// Those with more patience share what comes in the end.
	s.land(blob, slow, &staged{s: s, blob: blob, holders: 1})
	st, f, err = s.lead(t.Context(), blob, time.Hour)
	if st == nil || f != nil || err != nil {
		t.Fatalf("%v %v %v", st, f, err)
	}
}
