package agent

import "testing"

func TestConcise(t *testing.T) {
	for in, want := range map[string]string{
		"exec failed: no such file\n": "exec failed: no such file",
		"runtime: failed to create new OS thread\nruntime: may need to increase max user processes\nfatal error: newosproc\n\nruntime stack:\nruntime.throw(...)\n": "runtime: failed to create new OS thread\nruntime: may need to increase max user processes\nfatal error: newosproc",
		"panic: x\n\ngoroutine 1 [running]:\nmain.main()": "panic: x",
	} {
		if got := concise([]byte(in)); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}
