package daemon

// probeIDMap tells whether root file systems can be made for user namespaces.
func (d *parts) probeIDMap() bool {
	if err := d.store.IDMapped(); err != nil {
		d.log.Warn("pods with a user namespace are refused", "error", err)
		return false
	}
	return true
}
