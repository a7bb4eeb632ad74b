// Command ocid-monitor watches one pod: see package agent.
package main

import (
	"os"

	"github.com/ocid-io/ocid/runtime/monitor/agent"
)

func main() { os.Exit(agent.Main(os.Args)) }
