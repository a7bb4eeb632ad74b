//go:build tools

// Package tools pins the Kubernetes that the tests run against: the kubelet
// for static pods, and the control plane. It is a module of its own so that
// their dependencies stay out of the product's.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
