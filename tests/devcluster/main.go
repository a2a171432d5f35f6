// devcluster runs a genuine Kubernetes on this machine whose pods are plain local processes.
//
// One binary holds every part: the command line for people, the control plane, the kubelet, kubectl and Helm. Called by the name kubectl
// or helm it is that program.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

func main() {
	if runtime.GOOS != "linux" {
		fmt.Fprintln(os.Stderr, "devcluster runs on Linux only: it relies on /proc, on 127.0.0.0/8 and on Linux namespaces")
		os.Exit(1)
	}
	args := os.Args[1:]
	name := filepath.Base(os.Args[0])
	if _, isPart := parts[name]; !isPart && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	if run, isPart := parts[name]; isPart {
		os.Args = append([]string{name}, args...)
		os.Exit(run(args))
	}
	os.Exit(runCommand())
}
