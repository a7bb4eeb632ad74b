// Command nriplugin is an NRI plugin for tests: it gives every container whose
// annotations have nri-test the variable NRI_PLUGIN with the annotation's value.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct{}

// CreateContainer implements stub.CreateContainerInterface.
func (plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	value, ok := c.GetAnnotations()["nri-test"]
	if !ok {
		return nil, nil, nil
	}
	adjust := &api.ContainerAdjustment{}
	adjust.AddEnv("NRI_PLUGIN", value)
	return adjust, nil, nil
}

func main() {
	s, err := stub.New(plugin{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
