package layered

// OldKernel makes mounts go the way they do before Linux 6.8, until the
// returned function is called.
func OldKernel() func() {
	noLowerAppend.Store(true)
	return func() { noLowerAppend.Store(false) }
}
