package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// replay lays recorded files out under a temporary directory.
func replay(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, part := range strings.Split("\n"+string(data), "\n== ")[1:] {
		file, content, _ := strings.Cut(part, "\n")
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

var recordedPressure = &Pressure{
	CPU: Stall{
		Some: StallTime{Avg10: 1.5, Avg60: .25, Avg300: .05, TotalNanos: 24295000},
		Full: StallTime{TotalNanos: 20300000},
	},
	IO: Stall{Some: StallTime{TotalNanos: 3411000}, Full: StallTime{TotalNanos: 3410000}},
}

func check(t *testing.T, fs *FS, want Stats) {
	t.Helper()
	got, err := fs.DetailedStats("/g")
	if err != nil {
		t.Fatal(err)
	}
	if got.Timestamp == 0 {
		t.Error("no time")
	}
	got.Timestamp = 0
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v %+v\nwant %+v %+v %+v", got, got.Detail, got.Pressure, want, want.Detail, want.Pressure)
	}
	brief, err := fs.Stats("/g")
	brief.Timestamp, want.Detail = 0, nil
	if err != nil || !reflect.DeepEqual(brief, want) {
		t.Errorf("without detail: %+v, %v", brief, err)
	}
	if n, err := fs.CPU("/g"); err != nil || n != want.CPUNanos {
		t.Errorf("CPU alone: %d, %v", n, err)
	}
	if _, err := fs.CPU("/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := fs.Stats("/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestStatsV1(t *testing.T) {
	root := replay(t, "v1.txt")
	fs := &FS{mode: Hybrid, v1: map[string]string{}, v2: root + "/unified"}
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		fs.v1[c] = filepath.Join(root, c)
	}
	check(t, fs, Stats{
		CPUNanos: 13550772, MemoryUsage: 5660672, MemoryWorkingSet: 5660672 - 5242880, MemoryRSS: 53249,
		MemoryLimit: 49999872, MemoryAvailable: 49999872 - (5660672 - 5242880), PageFaults: 1242, MajorPageFaults: 3,
		SwapUsage: 4096, SwapLimit: 49999872, MemoryCache: 5246976, MemoryMapped: 8192, MemoryActiveFile: 4096,
		MemoryInactiveFile: 5242880, Pids: 5, Processes: 2, Pressure: recordedPressure,
		Detail: &Detail{
			CPUUser: 1200000000, CPUSystem: 310000000, Periods: 30, ThrottledPeriods: 4, ThrottledNanos: 123456789,
			Bursts: 2, BurstNanos: 77, MemoryMax: 7188480, MemoryKernel: 315392, MemoryFailures: 9, OOMKills: 2,
			IO: []DeviceIO{
				{Major: 8, ReadBytes: 4096, WriteBytes: 5242880, DiscardBytes: 512, Reads: 1, Writes: 80, Discards: 2},
				{Major: 254, Minor: 16, ReadBytes: 1, WriteBytes: 2, Writes: 4},
			},
		},
	})
	fs.mode, fs.v2 = Legacy, ""
	if st, err := fs.Stats("/g"); err != nil || st.Pressure != nil {
		t.Errorf("pressure without a v2 hierarchy: %+v, %v", st.Pressure, err)
	}
}

func TestStatsV2(t *testing.T) {
	root := replay(t, "v2.txt") + "/unified"
	check(t, &FS{mode: Unified, v2: root, roots: []string{root}}, Stats{
		CPUNanos: 13550000, MemoryUsage: 5660672, MemoryWorkingSet: 5660672 - 5242880, MemoryRSS: 53248,
		MemoryLimit: 49999872, MemoryAvailable: 49999872 - (5660672 - 5242880), PageFaults: 1242, MajorPageFaults: 3,
		SwapUsage: 4096, MemoryCache: 5246976, MemoryMapped: 8192, MemoryActiveFile: 4096,
		MemoryInactiveFile: 5242880, Pids: 5, PidsLimit: 100, Processes: 3, Pressure: recordedPressure,
		Detail: &Detail{
			CPUUser: 4000000, CPUSystem: 9550000, Periods: 30, ThrottledPeriods: 4, ThrottledNanos: 123456000,
			Bursts: 2, BurstNanos: 77000, MemoryMax: 7188480, MemoryKernel: 315392, MemoryFailures: 9, OOMKills: 2,
			IO: []DeviceIO{
				{Major: 8, ReadBytes: 4096, WriteBytes: 5242880, DiscardBytes: 512, Reads: 1, Writes: 80, Discards: 2},
				{Major: 254, Minor: 16, ReadBytes: 1, WriteBytes: 2, Writes: 4},
			},
		},
	})
}

// The kernel's text is trusted less than it deserves: nothing in it may panic.
func FuzzParsers(f *testing.F) {
	for _, seed := range []string{"8:0 rbytes=1\n", "8:0 Read 4\nTotal 4\n", "some avg10=1 total=2\nfull\n", "x", ":=: = \n", "some avg10=NaN total=99999999999999999999\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		ioStat(data)
		addBlkio(nil, data, true)
		parseStall(data, &Stall{})
		pairs(data, func([]byte, uint64) {})
	})
}
