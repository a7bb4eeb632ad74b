package apparmor

import "strings"

// template is the default profile; NAME is its name.
//
// The mount namespace, masked paths and capabilities already hold a container
// back; the profile is the second wall. It therefore starts from everything a
// program needs and takes away what reaches the machine: mounts, the kernel's
// knobs in /proc and /sys, and signals and ptrace across its border.
const template = `# Written by ocid, loaded by ocid: changes here are lost.
profile NAME flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  umount,
  unix,

  # No container mounts: what it is to see was mounted for it.
  deny mount,
  deny remount,
  deny pivot_root,

  # Whoever runs the container may end it; containers have to do with those of
  # their own kind alone.
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
  signal (receive) peer=runc,
  signal (send, receive) peer=NAME,
  ptrace (read, readby, trace, tracedby) peer=NAME,

  # The kernel's memory and its emergency levers.
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /proc/sysrq-trigger rwklx,

  # Nothing in /proc is to be written but what belongs to processes...
  deny /proc/[a-z]* w,
  deny /proc/{acpi,asound,bus,driver,dynamic_debug,fs,irq,scsi,tty}/** wklx,

  # ...and the sysctls that have namespaces: net.*, fs.mqueue.*, kernel.msg*,
  # kernel.sem and kernel.shm*.
  deny /proc/sys/{abi,crypto,debug,dev,sunrpc,user,vm,xen}/** wklx,
  deny /proc/sys/fs/[^m]** wklx,
  deny /proc/sys/fs/m[^q]** wklx,
  deny /proc/sys/kernel/[^ms]** wklx,
  deny /proc/sys/kernel/m[^s]** wklx,
  deny /proc/sys/kernel/s[^eh]** wklx,
  deny /proc/sys/kernel/se[^m]** wklx,
  deny /proc/sys/kernel/sh[^m]** wklx,

  # Of /sys only control groups may be written, and some is not even read.
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`

// Text returns the default profile under the given name.
func Text(name string) string { return strings.ReplaceAll(template, "NAME", name) }
