package runtime

// Usage is what a container, or a pod with all that is in it, has used.
// A field that the kernel does not tell is zero.
type Usage struct {
	Timestamp        int64  `json:"timestamp"` // when it was read
	CPUNanos         uint64 `json:"cpuNanos"`
	MemoryUsage      uint64 `json:"memoryUsage"`
	MemoryWorkingSet uint64 `json:"memoryWorkingSet"` // usage without inactive file cache
	MemoryRSS        uint64 `json:"memoryRSS"`
	MemoryAvailable  uint64 `json:"memoryAvailable"` // limit less working set; 0 without limit
	PageFaults       uint64 `json:"pageFaults"`
	MajorPageFaults  uint64 `json:"majorPageFaults"`
	SwapUsage        uint64 `json:"swapUsage"`
	Pids             uint64 `json:"pids"`
	PidsLimit        uint64 `json:"pidsLimit"`
	UpperBytes       uint64 `json:"upperBytes"`  // the container's writable layer
	UpperInodes      uint64 `json:"upperInodes"` // files and directories in it
	UpperMount       string `json:"upperMount"`  // mount point that holds it; "" without one
}

// InterfaceUsage counts the traffic of one network interface.
type InterfaceUsage struct {
	Name     string `json:"name"`
	RxBytes  uint64 `json:"rxBytes"`
	RxErrors uint64 `json:"rxErrors"`
	TxBytes  uint64 `json:"txBytes"`
	TxErrors uint64 `json:"txErrors"`
}

// PodUsage is the usage of a pod; Network is empty for a pod on the host's.
type PodUsage struct {
	Usage
	Network []InterfaceUsage `json:"network,omitempty"`
}

// HandlerInfo describes one configured runtime handler.
type HandlerInfo struct {
	Name              string // "" is the default handler's alias
	RecursiveReadOnly bool   // recursive read-only mounts work
	UserNamespaces    bool   // user namespaces and id-mapped mounts work
}
