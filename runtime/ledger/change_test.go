package ledger

import (
	"errors"
	"reflect"
	"sync"
	"testing"

	"github.com/ocid-io/ocid/runtime"
)

// Changes of different fields, made at the same time, are all there in the end.
func TestChangesLoseNothing(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	must(t, l.PutPod(newPod(1)))
	c := newContainer(2, 1)
	must(t, l.PutContainer(c))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				_, err := l.ChangeContainer(c.ID, func(c *runtime.Container) error { c.ExitCode++; return nil })
				_, perr := l.ChangePod(c.PodID, func(p *runtime.Pod) error { p.MonitorStart++; return nil })
				if err = errors.Join(err, perr); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, l.Close())
	l = open(t, dir)
	if got, _ := l.Container(c.ID); got.ExitCode != 400 {
		t.Errorf("%d of 400 changes of the container", got.ExitCode)
	}
	if got, _ := l.Pod(c.PodID); got.MonitorStart != 400 {
		t.Errorf("%d of 400 changes of the pod", got.MonitorStart)
	}
}

// A change brings nothing back, moves along the state machine, keeps what
// identifies the record, and shares no memory with its caller.
func TestChangeIsAPut(t *testing.T) {
	l := open(t, t.TempDir())
	must(t, l.PutPod(newPod(1)))
	c := newContainer(2, 1)
	must(t, l.PutContainer(c))
	own := errors.New("own")
	for name, f := range map[string]func(*runtime.Container) error{
		"own error": func(c *runtime.Container) error { c.ExitCode = 7; return own },
		"state":     func(c *runtime.Container) error { c.State = runtime.ContainerExited; return nil },
		"no state":  func(c *runtime.Container) error { c.State = "x"; return nil },
		"id":        func(c *runtime.Container) error { c.ID = runtime.ContainerID(id(3)); return nil },
		"name":      func(c *runtime.Container) error { c.Config.Name.Name = "other"; return nil },
	} {
		_, err := l.ChangeContainer(c.ID, f)
		if err == nil || name == "own error" && !errors.Is(err, own) {
			t.Errorf("%s: %v", name, err)
		}
		want := c
		want.Version = runtime.RecordVersion
		if got, _ := l.Container(c.ID); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the record is %+v", name, got)
		}
	}
	labels := map[string]string{"a": "1"}
	got, err := l.ChangeContainer(c.ID, func(c *runtime.Container) error { c.Config.Labels = labels; return nil })
	must(t, err)
	labels["a"], got.Config.Labels["a"] = "2", "3"
	if now, _ := l.Container(c.ID); now.Config.Labels["a"] != "1" {
		t.Error("the caller's map is in the record")
	}
	must(t, l.DeleteContainer(c.ID))
	if _, err := l.ChangeContainer(c.ID, func(*runtime.Container) error { return nil }); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("change of what is deleted: %v", err)
	}
	if n := len(l.Containers()); n != 0 {
		t.Errorf("%d records", n)
	}
}

// A container that is just being recorded does not slip into a pod whose
// containers have all been ended.
func TestNoNewContainerInAPodThatEnds(t *testing.T) {
	l := open(t, t.TempDir())
	p := newPod(1)
	for i, s := range []runtime.PodState{runtime.PodCreating, runtime.PodReady, runtime.PodNotReady, runtime.PodRemoving} {
		p.State = s
		must(t, l.PutPod(p))
		err := l.PutContainer(newContainer(10+i, 1))
		if ends := i >= 2; ends != errors.Is(err, runtime.ErrState) {
			t.Errorf("in a pod that is %s: %v", s, err)
		}
	}
}
