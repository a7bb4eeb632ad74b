package textpages

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestReadOnlyOf(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-01c28000 r-xp 00000000 fe:00 123 /usr/bin/ocid":  true,
		"01c28000-02000000 r--p 01828000 fe:00 123 /usr/bin/ocid":  true,
		"02000000-02100000 rw-p 01c00000 fe:00 123 /usr/bin/ocid":  false, // holds variables
		"02000000-02100000 r--p 01c00000 fe:00 123 /usr/bin/ocidx": false,
		"7ffd0000-7ffd1000 r-xp 00000000 00:00 0 [vdso]":           false,
		"c000000000-c000400000 rw-p 00000000 00:00 0":              false,
		"nonsense r-xp 00000000 fe:00 123 /usr/bin/ocid":           false,
	} {
		if _, _, ok := readOnlyOf(line, "/usr/bin/ocid"); ok != want {
			t.Errorf("%s: %v", line, ok)
		}
	}
}

func TestDropGivesPagesBack(t *testing.T) {
	touched := bytes.Count(self(t), []byte{0}) // the file's pages are now in the page cache
	before := fileRSS(t)
	if err := Drop(); err != nil {
		t.Fatal(err)
	}
	after := fileRSS(t)
	if after >= before {
		t.Errorf("resident pages of files: %d kB before, %d kB after (%d zero bytes)", before, after, touched)
	}
}

func self(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fileRSS is RssFile of /proc/self/status, in kB.
func fileRSS(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}
