package proto

import (
	"os"
	"strconv"
	"strings"
)

// Exit is how a container ended.
type Exit struct {
	Code int64
	Time int64 // nanoseconds since the epoch
	OOM  bool
}

// ExitDir is the directory of exit files below a pod's run directory. A file
// is named after its container and outlives the monitor.
const ExitDir = "exit"

const exitVersion = "v1"

// WriteExit writes the exit file by rename: a reader sees all of it or none.
func WriteExit(dir, container string, e Exit) error {
	b := append(make([]byte, 0, 64), exitVersion...)
	b = strconv.AppendInt(append(b, ' '), e.Code, 10)
	b = strconv.AppendInt(append(b, ' '), e.Time, 10)
	b = strconv.AppendBool(append(b, ' '), e.OOM)
	b = append(b, '\n')
	d := dir + "/" + ExitDir
	if err := os.MkdirAll(d, 0o700); err != nil {
		return err
	}
	tmp := d + "/." + container
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d+"/"+container)
}

// ReadExit reads it back. The error is fs.ErrNotExist if there is none, and
// ErrMalformed if it is damaged.
func ReadExit(dir, container string) (Exit, error) {
	b, err := os.ReadFile(dir + "/" + ExitDir + "/" + container)
	if err != nil {
		return Exit{}, err
	}
	// Words behind the known ones belong to a later release.
	f := strings.Fields(string(b))
	if len(f) < 4 || f[0] != exitVersion {
		return Exit{}, ErrMalformed
	}
	var e Exit
	var err1, err2, err3 error
	e.Code, err1 = strconv.ParseInt(f[1], 10, 32)
	e.Time, err2 = strconv.ParseInt(f[2], 10, 64)
	e.OOM, err3 = strconv.ParseBool(f[3])
	if err1 != nil || err2 != nil || err3 != nil {
		return Exit{}, ErrMalformed
	}
	return e, nil
}

// RemoveExit forgets it. Idempotent.
func RemoveExit(dir, container string) error {
	err := os.Remove(dir + "/" + ExitDir + "/" + container)
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
