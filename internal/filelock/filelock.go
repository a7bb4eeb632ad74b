// Package filelock takes the exclusive lock of a file that belongs to one
// process at a time.
package filelock

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inherited is how long a lock may still be held by nobody who wants it: a
// process that was killed while it started another one leaves a child that has
// the lock's file open until its exec (flock(2): a lock belongs to the open
// file, which fork shares).
const inherited = 2 * time.Second

// pause between two tries: nothing tells when such a child has come to its exec.
const pause = 5 * time.Millisecond

// Take locks f. unix.EWOULDBLOCK means that another process holds the lock and
// goes on holding it.
func Take(f *os.File) error {
	for end := time.Now().Add(inherited); ; time.Sleep(pause) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return err
		}
	}
}
