package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// confDir holds the network configuration that a directory makes current, and
// follows the directory through inotify.
type confDir struct {
	dir string

	mu      sync.Mutex
	list    *libcni.NetworkConfigList // guarded by mu
	err     error                     // guarded by mu: why list is nil
	watch   *os.File                  // guarded by mu; nil when the directory is not followed
	closed  bool                      // guarded by mu
	changes uint64                    // guarded by mu: number of loads
}

const watchMask = unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ATTRIB

// current returns the configuration. It costs nothing while the directory is
// followed; otherwise the directory is read, and following it tried again.
func (c *confDir) current() (*libcni.NetworkConfigList, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watch == nil && !c.closed {
		c.follow()
		c.reload()
	}
	return c.list, c.changes, c.err
}

// follow must be called with c.mu held, before the directory is read, so that
// no change falls between.
func (c *confDir) follow() {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, c.dir, watchMask|unix.IN_ONLYDIR); err != nil {
		_ = f.Close()
		return
	}
	c.watch = f
	go c.read(f)
}

// read ends when f is closed or the directory has gone.
func (c *confDir) read(f *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		c.mu.Lock()
		if err != nil || c.closed || lost(buf[:n]) {
			if c.watch == f {
				c.watch = nil
			}
			c.mu.Unlock()
			_ = f.Close()
			return
		}
		c.reload()
		c.mu.Unlock()
	}
}

// lost tells whether the events say that the directory itself went away. The
// header of an event is wd, mask, cookie, len, each four bytes.
func lost(buf []byte) bool {
	for len(buf) >= unix.SizeofInotifyEvent {
		mask, size := hostUint32(buf[4:]), int(hostUint32(buf[12:]))
		if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0 {
			return true
		}
		buf = buf[min(len(buf), unix.SizeofInotifyEvent+size):]
	}
	return false
}

// reload must be called with c.mu held.
func (c *confDir) reload() {
	c.list, c.err = loadConf(c.dir)
	c.changes++
}

func (c *confDir) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.watch != nil {
		_ = c.watch.Close()
		c.watch = nil
	}
}

// loadConf takes the lexically first valid configuration; the error of one
// that is not valid is told if no other is.
func loadConf(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("%w: CNI configuration: %w", runtime.ErrUnavailable, err)
	}
	slices.Sort(files)
	var errs []error
	for _, f := range files {
		list, err := parseConf(f)
		if err == nil {
			return list, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(f), err))
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%w: no valid CNI configuration in %s: %w", runtime.ErrUnavailable, dir, errors.Join(errs...))
	}
	return nil, fmt.Errorf("%w: no CNI configuration in %s", runtime.ErrUnavailable, dir)
}

func parseConf(path string) (*libcni.NetworkConfigList, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > 1<<20 {
		return nil, errors.New("not a regular file of at most 1 MiB")
	}
	if filepath.Ext(path) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(path)
		if err != nil {
			return nil, err
		}
		return inline(list)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if conf.Network.Name == "" {
		return nil, errors.New("the network has no name")
	}
	list, err := libcni.NetworkConfFromBytes(wrapPlugin(conf))
	if err != nil {
		return nil, err
	}
	return inline(list)
}

func wrapPlugin(conf *libcni.PluginConfig) []byte {
	data, err := json.Marshal(map[string]any{
		"name": conf.Network.Name, "cniVersion": conf.Network.CNIVersion,
		"plugins": []json.RawMessage{conf.Bytes},
	})
	if err != nil {
		return nil // the parser of the result says that it is empty
	}
	return data
}

// inline puts plugins that came from other files into the list's own bytes,
// because those bytes are what an attachment is undone with later.
func inline(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, p := range list.Plugins {
		plugins[i] = p.Bytes
	}
	data, err := json.Marshal(map[string]any{
		"name": list.Name, "cniVersion": list.CNIVersion, "disableCheck": list.DisableCheck,
		"disableGC": list.DisableGC, "loadOnlyInlinedPlugins": true, "plugins": plugins,
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}
