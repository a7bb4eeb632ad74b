package layered

// OldKernel makes mounts go the way they do before Linux 6.8, until the
// returned function is called.
func OldKernel() func() {
	noLowerAppend.Store(true)
	noDetachedLower.Store(true)
	return func() { noLowerAppend.Store(false); noDetachedLower.Store(false) }
}

// DetachedLower says whether the kernel took a layer that is mounted nowhere.
func DetachedLower() bool { return !noDetachedLower.Load() }
