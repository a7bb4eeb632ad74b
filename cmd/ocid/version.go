package main

import "github.com/ocid-io/ocid/cmd/ocid/internal/daemon"

// version is set by the linker.
var version = "devel"

func init() { daemon.Version = version }
