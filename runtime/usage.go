package runtime

// Usage is what a container, or a pod with all that is in it, has used.
// A field that the kernel does not tell is zero.
type Usage struct {
	Timestamp        int64  `json:"timestamp"` // when the CPU time was read
	ReadAt           int64  `json:"readAt"`    // when the rest was; earlier if nothing has run since
	CPUNanos         uint64 `json:"cpuNanos"`
	MemoryUsage      uint64 `json:"memoryUsage"`
	MemoryWorkingSet uint64 `json:"memoryWorkingSet"` // usage without inactive file cache
	MemoryRSS        uint64 `json:"memoryRSS"`
	MemoryLimit      uint64 `json:"memoryLimit"`     // 0: none
	MemoryAvailable  uint64 `json:"memoryAvailable"` // limit less working set; 0 without limit
	MemoryCache      uint64 `json:"memoryCache"`
	MemoryMapped     uint64 `json:"memoryMapped"` // mapped files
	ActiveFile       uint64 `json:"activeFile"`
	InactiveFile     uint64 `json:"inactiveFile"`
	PageFaults       uint64 `json:"pageFaults"`
	MajorPageFaults  uint64 `json:"majorPageFaults"`
	SwapUsage        uint64 `json:"swapUsage"`
	SwapLimit        uint64 `json:"swapLimit"` // 0: none
	Pids             uint64 `json:"pids"`      // threads
	PidsLimit        uint64 `json:"pidsLimit"`
	Processes        uint64 `json:"processes"`

	Pressure *Pressure    `json:"pressure,omitempty"` // nil where the kernel does not measure it
	Detail   *UsageDetail `json:"detail,omitempty"`   // nil unless asked for

	UpperBytes  uint64 `json:"upperBytes"`  // the container's writable layer
	UpperInodes uint64 `json:"upperInodes"` // files and directories in it
	UpperAt     int64  `json:"upperAt"`     // when that was measured; 0: not yet
	UpperMount  string `json:"upperMount"`  // directory that holds it; "" without one
}

// UsageDetail is what is dearer to read.
type UsageDetail struct {
	CPUUser          uint64 `json:"cpuUser"` // nanoseconds
	CPUSystem        uint64 `json:"cpuSystem"`
	Periods          uint64 `json:"periods"` // of the CPU quota
	ThrottledPeriods uint64 `json:"throttledPeriods"`
	ThrottledNanos   uint64 `json:"throttledNanos"`
	Bursts           uint64 `json:"bursts"`
	BurstNanos       uint64 `json:"burstNanos"`
	MemoryMax        uint64 `json:"memoryMax"` // highest so far
	MemoryKernel     uint64 `json:"memoryKernel"`
	MemoryFailures   uint64 `json:"memoryFailures"` // times that usage ran into the limit
	OOMKills         uint64 `json:"oomKills"`

	IO []DeviceUsage `json:"io,omitempty"`

	// Of the file system that holds the writable layer.
	FSDevice     string `json:"fsDevice,omitempty"` // such as "/dev/sda1"
	FSBytes      uint64 `json:"fsBytes"`
	FSInodes     uint64 `json:"fsInodes"`
	FSInodesFree uint64 `json:"fsInodesFree"`

	FileDescriptors uint64 `json:"fileDescriptors"`
	Sockets         uint64 `json:"sockets"`
	MaxOpenFiles    uint64 `json:"maxOpenFiles"` // soft limit of the first process
}

// DeviceUsage counts what went to and came from one block device.
type DeviceUsage struct {
	Device       string `json:"device"` // such as "/dev/sda"; "" if it has no name
	Major        uint32 `json:"major"`
	Minor        uint32 `json:"minor"`
	ReadBytes    uint64 `json:"readBytes"`
	WriteBytes   uint64 `json:"writeBytes"`
	DiscardBytes uint64 `json:"discardBytes"`
	Reads        uint64 `json:"reads"`
	Writes       uint64 `json:"writes"`
	Discards     uint64 `json:"discards"`
}

// Pressure is the time lost waiting for CPU, memory and input and output.
type Pressure struct {
	CPU    Stall `json:"cpu"`
	Memory Stall `json:"memory"`
	IO     Stall `json:"io"`
}

// Stall is one resource's pressure: some tasks waited, or all did.
type Stall struct {
	Some StallTime `json:"some"`
	Full StallTime `json:"full"`
}

// StallTime is a share of time in percent over three windows, and its sum.
type StallTime struct {
	Avg10      float64 `json:"avg10"`
	Avg60      float64 `json:"avg60"`
	Avg300     float64 `json:"avg300"`
	TotalNanos uint64  `json:"totalNanos"`
}

// InterfaceUsage counts the traffic of one network interface.
type InterfaceUsage struct {
	Name      string `json:"name"`
	RxBytes   uint64 `json:"rxBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxBytes   uint64 `json:"txBytes"`
	TxPackets uint64 `json:"txPackets"`
	TxErrors  uint64 `json:"txErrors"`
	TxDropped uint64 `json:"txDropped"`
}

// PodUsage is the usage of a pod; Network is empty for a pod on the host's.
type PodUsage struct {
	Usage
	Network   []InterfaceUsage `json:"network,omitempty"`
	NetworkAt int64            `json:"networkAt,omitempty"` // when that was read
	Cgroup    string           `json:"cgroup,omitempty"`    // the pod's own; "" if it shares its parent
}

// HandlerInfo describes one configured runtime handler.
type HandlerInfo struct {
	Name              string // "" is the default handler's alias
	RecursiveReadOnly bool   // recursive read-only mounts work
	UserNamespaces    bool   // user namespaces and id-mapped mounts work
}
