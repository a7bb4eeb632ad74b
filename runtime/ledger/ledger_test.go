package ledger

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

var _ lifecycle.Ledger = (*Ledger)(nil)

func id(n int) string { return fmt.Sprintf("%064x", n) }

func newPod(n int) runtime.Pod {
	return runtime.Pod{
		ID: runtime.PodID(id(n)), State: runtime.PodCreating, CreatedAt: int64(n),
		Config: runtime.PodConfig{Name: runtime.PodName{Name: fmt.Sprint("pod", n)}},
	}
}

func newContainer(n, pod int) runtime.Container {
	return runtime.Container{
		ID: runtime.ContainerID(id(n)), PodID: runtime.PodID(id(pod)), CreatedAt: int64(n),
		State: runtime.ContainerCreating, Config: runtime.ContainerConfig{Name: runtime.ContainerName{Name: fmt.Sprint("c", n)}},
	}
}

func open(t testing.TB, dir string) *Ledger {
	t.Helper()
	l, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill sets every field of v to something that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(k)
		fill(e)
		v.SetMapIndex(k, e)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	default:
		if v.CanInt() {
			v.SetInt(1)
		} else {
			v.SetUint(1)
		}
	}
}

// shared names the first place where a and b point to the same memory.
func shared(a, b reflect.Value, at string) string {
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if a.Pointer() == b.Pointer() {
			return at
		}
	}
	switch a.Kind() {
	case reflect.Pointer:
		return shared(a.Elem(), b.Elem(), at)
	case reflect.Slice:
		return shared(a.Index(0), b.Index(0), at+"[0]")
	case reflect.Struct:
		for i := range a.NumField() {
			if s := shared(a.Field(i), b.Field(i), at+"."+a.Type().Field(i).Name); s != "" {
				return s
			}
		}
	}
	return ""
}

func TestClonesShareNothing(t *testing.T) {
	var p runtime.Pod
	fill(reflect.ValueOf(&p).Elem())
	pc := clonePod(&p)
	var c runtime.Container
	fill(reflect.ValueOf(&c).Elem())
	cc := cloneContainer(&c)
	for _, x := range [][2]any{{p, pc}, {c, cc}} {
		if !reflect.DeepEqual(x[0], x[1]) {
			t.Errorf("the copy of %T differs", x[0])
		}
		if s := shared(reflect.ValueOf(x[0]), reflect.ValueOf(x[1]), ""); s != "" {
			t.Errorf("the copy of %T shares %s", x[0], s)
		}
	}
}

func TestMovesAndIdentity(t *testing.T) {
	l := open(t, t.TempDir())
	p := newPod(1)
	bad := p
	bad.State = runtime.PodReady
	if err := l.PutPod(bad); !errors.Is(err, runtime.ErrState) {
		t.Fatalf("first Put as ready: %v", err)
	}
	must(t, l.PutPod(p))
	p.State = runtime.PodReady
	must(t, l.PutPod(p))
	p.State = runtime.PodCreating
	if err := l.PutPod(p); !errors.Is(err, runtime.ErrState) || !strings.Contains(err.Error(), "from ready to creating") {
		t.Fatalf("illegal move: %v", err)
	}
	p.State, p.Config.Name.Name = runtime.PodReady, "other"
	if err := l.PutPod(p); !errors.Is(err, runtime.ErrInvalid) {
		t.Fatalf("renamed: %v", err)
	}
	if err := l.PutPod(runtime.Pod{ID: "../x", State: runtime.PodCreating}); !errors.Is(err, runtime.ErrInvalid) {
		t.Fatalf("bad id: %v", err)
	}
	if err := l.PutContainer(newContainer(9, 8)); !errors.Is(err, runtime.ErrNotFound) {
		t.Fatalf("container without pod: %v", err)
	}
	must(t, l.PutContainer(newContainer(9, 1)))
	if err := l.DeletePod(p.ID); !errors.Is(err, runtime.ErrState) {
		t.Fatalf("pod with a container deleted: %v", err)
	}
	c := newContainer(9, 1)
	c.State = runtime.ContainerRunning
	if err := l.PutContainer(c); !errors.Is(err, runtime.ErrState) {
		t.Fatalf("creating -> running: %v", err)
	}
	if got, ok := l.ContainerByName(p.ID, c.Config.Name); !ok || got.State != runtime.ContainerCreating {
		t.Fatalf("%v %v", got, ok)
	}
	for range 2 {
		must(t, l.DeleteContainer(c.ID))
		must(t, l.DeletePod(p.ID))
	}
	if _, ok := l.PodByName(newPod(1).Config.Name); ok || len(l.Pods())+len(l.Containers()) > 0 {
		t.Fatal("something is left")
	}
}

func TestNameGoesToSuccessor(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	a, b := newPod(1), newPod(2)
	b.Config.Name = a.Config.Name
	must(t, l.PutPod(a))
	if err := l.PutPod(b); !errors.Is(err, runtime.ErrState) {
		t.Fatalf("two live pods with one name: %v", err)
	}
	a.State = runtime.PodRemoving
	must(t, l.PutPod(a))
	must(t, l.PutPod(b))
	must(t, l.Close())
	l = open(t, dir)
	if got, ok := l.PodByName(a.Config.Name); !ok || got.ID != b.ID {
		t.Fatalf("%v %v", got.ID, ok)
	}
	must(t, l.DeletePod(a.ID))
	if got, ok := l.PodByName(a.Config.Name); !ok || got.ID != b.ID {
		t.Fatalf("after the delete of the first: %v %v", got.ID, ok)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if _, err := Open(dir, nil); !errors.Is(err, runtime.ErrUnavailable) {
		t.Fatal(err)
	}
}

func TestDamagedRecords(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	for n := 1; n <= 7; n++ {
		must(t, l.PutPod(newPod(n)))
	}
	must(t, l.PutContainer(newContainer(20, 1)))
	must(t, l.Close())
	path := func(n int) string { return filepath.Join(dir, "pods", id(n)+".json") }
	write := func(p, s string) { must(t, os.WriteFile(p, []byte(s), 0o600)) }
	write(path(2), `{"version":1,"id":"`)
	write(path(3), `{"version":99,"id":"`+id(3)+`"}`)
	must(t, os.Rename(path(4), path(44)))
	must(t, os.Truncate(path(5), maxRecord+1))
	must(t, os.Remove(path(6)))
	must(t, unix.Mkfifo(path(6), 0o600))
	must(t, os.Remove(path(7)))
	must(t, os.Symlink("/etc/passwd", path(7)))
	write(filepath.Join(dir, "pods", "notes.txt"), `{"id":"`+id(8)+`"}`)
	must(t, os.Truncate(filepath.Join(dir, "containers", id(20)+".json"), 180))

	for round := range 2 {
		l = open(t, dir)
		if ps := l.Pods(); len(ps) != 1 || ps[0].ID != newPod(1).ID {
			t.Fatalf("pods %v", ps)
		}
		ids := map[string]Damage{}
		for _, d := range l.Damaged() {
			ids[d.ID] = d
			if _, err := os.Lstat(d.File); err != nil || filepath.Dir(d.File) != filepath.Join(dir, "damaged") {
				t.Errorf("%+v: %v", d, err)
			}
		}
		for _, n := range []int{2, 3, 44, 5, 6, 7, 20} {
			if _, ok := ids[id(n)]; !ok {
				t.Errorf("round %d: %d is not reported", round, n)
			}
		}
		if d := ids[id(20)]; d.Kind != "container" || d.PodID != id(1) {
			t.Errorf("%+v", d)
		}
		if len(l.Damaged()) != 8 {
			t.Errorf("round %d: %d reports", round, len(l.Damaged()))
		}
		must(t, l.Close())
	}
	l = open(t, dir)
	for _, d := range l.Damaged() {
		must(t, l.Resolve(d))
	}
	must(t, l.Close())
	if ds := open(t, dir).Damaged(); len(ds) != 0 {
		t.Fatalf("resolved and reported again: %v", ds)
	}
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	must(t, os.Rename(dir+"/pods", dir+"/away"))
	if err := l.PutPod(newPod(1)); err == nil {
		t.Fatal("no error")
	}
	if _, ok := l.PodByName(newPod(1).Config.Name); ok || len(l.Pods()) > 0 {
		t.Fatal("in memory and not on disk")
	}
	must(t, os.Rename(dir+"/away", dir+"/pods"))
	must(t, l.PutPod(newPod(1)))
}

func TestConcurrent(t *testing.T) {
	l := open(t, t.TempDir())
	must(t, l.PutPod(newPod(1)))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 50 {
				c := newContainer(1000+w%4, 1) // two workers on each
				_ = l.PutContainer(c)
				_ = l.ContainersOf(c.PodID)
				_, _ = l.Container(c.ID)
				if i%3 == 0 {
					if err := l.DeleteContainer(c.ID); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	files, _ := os.ReadDir(filepath.Join(l.dir, "containers"))
	if len(files) != len(l.Containers()) {
		t.Fatalf("%d files, %d records", len(files), len(l.Containers()))
	}
}

// TestKilled runs puts in a child that is killed at random.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("OCID_LEDGER_CHILD"); dir != "" {
		l := open(t, dir)
		for i := 0; ; i++ {
			p := newPod(i%20 + 1)
			p.Config.Labels = map[string]string{"pad": strings.Repeat("x", i%5000)}
			must(t, l.PutPod(p))
			if i%7 == 0 {
				must(t, l.DeletePod(p.ID))
			}
		}
	}
	dir := t.TempDir()
	for i := range 15 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "OCID_LEDGER_CHILD="+dir)
		must(t, cmd.Start())
		time.Sleep(time.Duration(30+i*7) * time.Millisecond) // the moment of the kill
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		l := open(t, dir)
		if d := l.Damaged(); len(d) > 0 {
			t.Fatalf("torn record: %+v", d)
		}
		must(t, l.Close())
		if tmp, _ := filepath.Glob(dir + "/pods/.tmp-*"); len(tmp) > 0 {
			t.Fatalf("left: %v", tmp)
		}
	}
	if len(open(t, dir).Pods()) == 0 {
		t.Fatal("the child never wrote")
	}
}

func FuzzDecode(f *testing.F) {
	data, _ := encode(newPod(1))
	for _, s := range []string{string(data), "", "null", "[]", `{"version":1}`, `{"version":1,"id":"x","state":"ready"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := decodePod(data, id(1)); err == nil && string(p.ID) != id(1) {
			t.Fatal("accepted a record of another pod")
		}
		if c, err := decodeContainer(data, id(1)); err == nil && !validID(string(c.PodID)) {
			t.Fatal("accepted a bad pod id")
		}
		_ = salvage(kindContainer, "x", data)
	})
}

// BenchmarkPut shows that a Put costs the same with 10,000 records as with one.
func BenchmarkPut(b *testing.B) {
	for _, n := range []int{1, 10000} {
		b.Run(fmt.Sprint("records=", n), func(b *testing.B) {
			l := open(b, b.TempDir())
			for i := 1; i <= n; i++ {
				must(b, l.PutPod(newPod(i)))
			}
			p := newPod(n)
			for b.Loop() {
				must(b, l.PutPod(p))
			}
		})
	}
}
