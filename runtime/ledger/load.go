package ledger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/runtime"
)

// Damage is a record that could not be used and was set aside. The ids are
// what could still be read, "" where nothing could.
type Damage struct {
	Kind   string // "pod" or "container"
	ID     string
	PodID  string // of a container
	File   string // where it lies now
	Reason string
}

const (
	kindPod       = "pod"
	kindContainer = "container"
	// cleaned ends the name of a damaged record whose resources are gone.
	cleaned = ".cleaned"
	// keepCleaned is how many of those are kept for whoever investigates.
	keepCleaned = 64
)

// Damaged lists the records that were set aside, by this Open or an earlier
// one, and that nobody has reported as cleaned up.
func (l *Ledger) Damaged() []Damage {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.Clone(l.damaged)
}

// Resolve says that nothing of what the record stood for is left. The file
// stays for inspection and is not listed again.
func (l *Ledger) Resolve(d Damage) error {
	if err := os.Rename(d.File, d.File+cleaned); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("resolve damaged record: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.damaged = slices.DeleteFunc(l.damaged, func(x Damage) bool { return x.File == d.File })
	return nil
}

func (l *Ledger) load() error {
	if err := l.loadDamaged(); err != nil {
		return err
	}
	err := l.loadDir(kindPod, podsDir, func(data []byte, id string) error {
		p, err := decodePod(data, id)
		if err == nil {
			l.addPod(p)
		}
		return err
	})
	if err != nil {
		return err
	}
	return l.loadDir(kindContainer, containersDir, func(data []byte, id string) error {
		c, err := decodeContainer(data, id)
		if err == nil {
			l.addContainer(c)
		}
		return err
	})
}

// addPod and addContainer run before anybody else can see the ledger. Of two
// records with one name, which only a crash between a removal and its delete
// leaves, the one that is not being removed has the name.
func (l *Ledger) addPod(p *runtime.Pod) {
	l.pods[p.ID] = &entry[runtime.Pod]{rec: p}
	if id, ok := l.podNames[p.Config.Name]; !ok || l.pods[id].rec.State == runtime.PodRemoving {
		l.podNames[p.Config.Name] = p.ID
	}
}

func (l *Ledger) addContainer(c *runtime.Container) {
	l.containers[c.ID] = &entry[runtime.Container]{rec: c}
	holder, taken := l.containerNames[keyOf(c)]
	l.indexContainer(c)
	if taken && l.containers[holder].rec.State != runtime.ContainerRemoving {
		l.containerNames[keyOf(c)] = holder
	}
}

func (l *Ledger) loadDir(kind, sub string, add func(data []byte, id string) error) error {
	dir := filepath.Join(l.dir, sub)
	if err := atomicfile.RemoveTemps(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := readRecord(dir, e)
		if err == nil {
			err = add(data, strings.TrimSuffix(e.Name(), suffix))
		}
		if err != nil {
			l.setAside(kind, dir, e.Name(), data, err)
		}
	}
	return nil
}

// readRecord never blocks on a FIFO and never follows a link.
func readRecord(dir string, e fs.DirEntry) ([]byte, error) {
	if !e.Type().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%s)", e.Type())
	}
	if id, ok := strings.CutSuffix(e.Name(), suffix); !ok || !validID(id) {
		return nil, errors.New("the file name is not that of a record")
	}
	f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(data) > maxRecord {
		return nil, fmt.Errorf("the file is larger than %d bytes", maxRecord)
	}
	return data, err
}

func (l *Ledger) setAside(kind, dir, name string, data []byte, reason error) {
	from := filepath.Join(dir, name)
	to, err := l.freeName(kind + "." + name)
	if err == nil {
		err = os.Rename(from, to)
	}
	d := salvage(kind, name, data)
	d.File, d.Reason = to, reason.Error()
	if err != nil {
		// It stays where it is and is reported all the same.
		d.File = from
		l.log.Error("cannot set a damaged record aside", "file", from, "error", err)
	}
	l.damaged = append(l.damaged, d)
	l.log.Warn("set a damaged record aside", "kind", kind, "id", d.ID, "file", d.File, "error", reason)
}

// freeName finds a name under damaged/ that nothing has.
func (l *Ledger) freeName(name string) (string, error) {
	name = name[:min(len(name), 200)]
	for i := range 1000 {
		path := filepath.Join(l.dir, damagedDir, name)
		if i > 0 {
			path = fmt.Sprintf("%s~%d", path, i)
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no free name for %.80q", name)
}

// loadDamaged lists what earlier runs set aside and did not clean up after,
// and drops the oldest of what was.
func (l *Ledger) loadDamaged() error {
	dir := filepath.Join(l.dir, damagedDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var done []fs.FileInfo
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), cleaned) {
			if fi, err := e.Info(); err == nil {
				done = append(done, fi)
			}
			continue
		}
		kind, name, ok := strings.Cut(e.Name(), ".")
		if !ok || kind != kindPod && kind != kindContainer {
			continue
		}
		var data []byte
		if e.Type().IsRegular() {
			data = readHead(filepath.Join(dir, e.Name()))
		}
		d := salvage(kind, name, data)
		d.File, d.Reason = filepath.Join(dir, e.Name()), "set aside earlier"
		l.damaged = append(l.damaged, d)
	}
	slices.SortFunc(done, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, fi := range done[min(len(done), keepCleaned):] {
		if err := os.RemoveAll(filepath.Join(dir, fi.Name())); err != nil {
			l.log.Warn("cannot remove an old damaged record", "file", fi.Name(), "error", err)
		}
	}
	return nil
}

var (
	idField    = regexp.MustCompile(`"id"\s*:\s*"([0-9a-f]{64})"`)
	podIDField = regexp.MustCompile(`"podID"\s*:\s*"([0-9a-f]{64})"`)
)

// salvage reads ids out of what is left of a record. The file name wins over
// the content: resources are named after the file's owner.
func salvage(kind, name string, data []byte) Damage {
	d := Damage{Kind: kind}
	if len(name) >= 64 && validID(name[:64]) {
		d.ID = name[:64]
	} else if m := idField.FindSubmatch(data); m != nil {
		d.ID = string(m[1])
	}
	if kind == kindContainer {
		if m := podIDField.FindSubmatch(data); m != nil {
			d.PodID = string(m[1])
		}
	}
	return d
}

func readHead(path string) []byte {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 1<<20))
	return data
}
