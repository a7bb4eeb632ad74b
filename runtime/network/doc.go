// Package network gives pods their namespaces and attaches them to networks.
//
// Invariants:
//   - namespaces live by bind mounts, without a process; they are set up
//     (loopback, hostname, sysctls) before the first is bound, so that a
//     complete set of pins is always a finished one;
//   - the thread that changed its namespaces never runs other Go code;
//   - what a CNI plugin is about to do is on disk before it is run, with the
//     configuration it is run with, so that it can be undone after the
//     configuration has changed, a restart or a reboot;
//   - every plugin runs under a deadline in a process group of its own, which
//     is killed whole; an ADD that failed is followed by DEL.
package network
