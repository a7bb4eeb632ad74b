package lifecycle

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// upperAge is how old a writable layer's measure may be before a request
	// has it taken again, beside the answer; upperRest makes that longer for a
	// layer whose walk is long.
	upperAge  = 2 * time.Second
	upperRest = 100
	// walkBatch entries are looked at, then the walker rests for walkRest times
	// what they took: it never has more than a tenth of a core.
	walkBatch = 512
	walkRest  = 9
	// walkDirs bounds the directories that wait, and walkLinks the files with
	// several names that are known; a tree beyond is counted as far as it fits.
	walkDirs  = 1 << 17
	walkNames = 16 << 20 // bytes of their paths
	walkLinks = 1 << 16
)

// upperUsage is the last measure of a writable layer.
type upperUsage struct {
	gone atomic.Bool // nobody wants it any more: a walk stops

	mu     sync.Mutex
	at     time.Time // guarded by mu, as all below; zero: never measured
	took   time.Duration
	cpu    uint64 // CPU time of the container when the walk began
	queued bool
	bytes  uint64
	inodes uint64
}

func (u *upperUsage) last() (bytes, inodes uint64, at int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at.IsZero() {
		return 0, 0, 0
	}
	return u.bytes, u.inodes, u.at.UnixNano()
}

// uppers measures writable layers one after the other, away from any request,
// and runs only while there is something to do.
type uppers struct {
	mu      sync.Mutex
	queue   []walkJob // guarded by mu
	running bool      // guarded by mu
}

type walkJob struct {
	u   *upperUsage
	dir string
	cpu uint64
}

// want has dir measured if the last measure is old and something has run in
// the container, which cpu tells, since it was taken. It does not wait.
func (w *uppers) want(u *upperUsage, dir string, cpu uint64) {
	u.mu.Lock()
	age := time.Since(u.at)
	fresh := !u.at.IsZero() && (cpu == u.cpu || age < max(upperAge, upperRest*u.took))
	skip := fresh || u.queued
	u.queued = u.queued || !fresh
	u.mu.Unlock()
	if skip {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, walkJob{u, dir, cpu})
	if !w.running {
		w.running = true
		go w.run()
	}
}

func (w *uppers) run() {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.running, w.queue = false, nil
			w.mu.Unlock()
			return
		}
		j := w.queue[0]
		w.queue = w.queue[1:]
		w.mu.Unlock()
		j.measure()
	}
}

func (j walkJob) measure() {
	begin := time.Now()
	bytes, inodes := walk(j.dir, &j.u.gone)
	j.u.mu.Lock()
	defer j.u.mu.Unlock()
	j.u.queued = false
	if !j.u.gone.Load() {
		j.u.bytes, j.u.inodes, j.u.cpu = bytes, inodes, j.cpu
		j.u.at = time.Now()
		j.u.took = j.u.at.Sub(begin)
	}
}

// walker sums one tree. The tree belongs to a container that may change it at
// any time: every directory is opened below the root without following links.
type walker struct {
	root   int
	stop   *atomic.Bool
	dirs   []string // to be looked at, relative to root
	names  int      // bytes in dirs
	seen   map[uint64]struct{}
	bytes  uint64
	inodes uint64
	batch  int
	begin  time.Time
}

// walk sums blocks and inodes of dir and all below it, on its file system;
// what vanishes meanwhile is left out, and it ends early once stop is set.
func walk(dir string, stop *atomic.Bool) (bytes, inodes uint64) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0
	}
	defer func() { _ = unix.Close(root) }()
	w := walker{root: root, stop: stop, dirs: []string{"."}, seen: map[uint64]struct{}{}, begin: time.Now()}
	var st unix.Stat_t
	if unix.Fstat(root, &st) == nil {
		w.add(&st)
	}
	for len(w.dirs) > 0 && !stop.Load() {
		next := w.dirs[len(w.dirs)-1]
		w.dirs = w.dirs[:len(w.dirs)-1]
		w.names -= len(next)
		w.list(next)
	}
	return w.bytes, w.inodes
}

func (w *walker) list(rel string) {
	fd, err := unix.Openat2(w.root, rel, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), rel)
	defer func() { _ = f.Close() }()
	for {
		names, err := f.Readdirnames(walkBatch)
		for _, name := range names {
			w.entry(fd, rel, name)
		}
		if err != nil || w.stop.Load() {
			return
		}
		w.rest()
	}
}

func (w *walker) entry(dir int, rel, name string) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	w.add(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && len(w.dirs) < walkDirs && w.names+len(rel)+len(name) < walkNames {
		w.dirs = append(w.dirs, rel+"/"+name)
		w.names += len(rel) + 1 + len(name)
	}
}

func (w *walker) add(st *unix.Stat_t) {
	w.batch++
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, twice := w.seen[st.Ino]; twice {
			return
		}
		if len(w.seen) < walkLinks {
			w.seen[st.Ino] = struct{}{}
		}
	}
	w.bytes += uint64(max(st.Blocks, 0)) * 512
	w.inodes++
}

// rest gives the machine back to others after every batch.
func (w *walker) rest() {
	if w.batch < walkBatch {
		return
	}
	time.Sleep(min(walkRest*time.Since(w.begin), time.Second))
	w.batch, w.begin = 0, time.Now()
}
