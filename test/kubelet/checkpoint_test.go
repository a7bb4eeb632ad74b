package kubelet

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
)

// TestCheckpoint: the kubelet's checkpoint of a container is an archive that
// only root reads, or an error that names criu; the container goes on.
func TestCheckpoint(t *testing.T) {
	n, ctx := beside(t)
	p := up(ctx, t, n, "frozen", `
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "i=0; while :; do i=$((i+1)); echo $i >/count; usleep 10000; done"]
    readinessProbe: {exec: {command: [cat, /count]}, periodSeconds: 1}
`)
	body, failed := n.Open(ctx, http.MethodPost, fmt.Sprintf("/checkpoint/default/%s/main", n.Static("frozen")))
	if failed == nil {
		defer body.Close()
		archive(t, body)
	} else if !strings.Contains(failed.Error(), "criu") {
		t.Errorf("checkpoint: %v", failed)
	}
	before := shell(ctx, t, n, p, "main", "cat /count")
	check(t, n.Await(ctx, "another count", func() (bool, error) {
		return shell(ctx, t, n, p, "main", "cat /count") != before, nil
	}))
	if now := cri(ctx, t, n, p.Container("main")); now.FinishedAt != 0 {
		t.Errorf("the container ended: %v", now)
	}
	if failed != nil && !t.Failed() {
		t.Skipf("needs a criu that works with this kernel: %v", failed)
	}
}

// archive checks what the kubelet says that it made.
func archive(t *testing.T, answer io.Reader) {
	t.Helper()
	var a struct{ Items []string }
	check(t, json.NewDecoder(answer).Decode(&a))
	if len(a.Items) != 1 {
		t.Fatalf("archives: %v", a.Items)
	}
	st := must[os.FileInfo](t)(os.Stat(a.Items[0]))
	if st.Size() == 0 || st.Mode().Perm()&0o077 != 0 {
		t.Errorf("the archive has %d bytes and mode %v", st.Size(), st.Mode())
	}
}
