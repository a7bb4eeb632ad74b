//go:build tools

// Package tools pins the module that critest is built from.
package tools

import _ "sigs.k8s.io/cri-tools/cmd/critest"
