package runtimesvc

import (
	"errors"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// A kubelet sends a limit of zero for each page size with every container; a
// machine that cannot limit huge pages must still run them.
func TestHugepagesWithoutController(t *testing.T) {
	for _, x := range []struct {
		hugetlb bool
		limit   uint64
		want    int
		invalid bool
	}{
		{hugetlb: true, limit: 0, want: 1},
		{hugetlb: true, limit: 4 << 20, want: 1},
		{hugetlb: false, limit: 0},
		{hugetlb: false, limit: 4 << 20, invalid: true},
	} {
		var c check
		got := c.hugepages("hugepage_limits", []*cri.HugepageLimit{{PageSize: "2MB", Limit: x.limit}}, Host{Hugetlb: x.hugetlb})
		if err := c.err(); errors.Is(err, runtime.ErrInvalid) != x.invalid {
			t.Errorf("%+v: %v", x, err)
		}
		if len(got) != x.want {
			t.Errorf("%+v: %v", x, got)
		}
	}
}
