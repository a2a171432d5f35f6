// devcluster-shim watches over one container of a devcluster node.
//
// It is a program of its own, and small, because there is one for each container: the whole of Kubernetes in each would cost memory and
// a tenth of a second at each start. Only a node calls it.
package main

import (
	"fmt"
	"os"

	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/shim"
)

const callerFile = 3 // the file descriptor on which the caller listens

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	var err error
	switch {
	case len(args) == 1 && args[0] == "check":
		err = shim.Check()
	case len(args) == 3 && args[0] == "run":
		err = shim.Run(pods.Dir(args[1]), shim.Isolation(args[2]), os.NewFile(callerFile, "report"))
	case len(args) == 3 && args[0] == "enter":
		err = enter(pods.Dir(args[1]), shim.Isolation(args[2]))
	default:
		fmt.Fprintln(os.Stderr, "devcluster-shim is started by `devcluster node` alone")
		return 2
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "devcluster-shim:", err)
		return 1
	}
	return 0
}

// enter tells the outer stage what went wrong; success closes the file by itself.
func enter(dir pods.Dir, isolation shim.Isolation) error {
	complaint, err := shim.Complaint(callerFile)
	if err != nil {
		return err
	}
	if err := shim.Enter(dir, isolation); err != nil {
		fmt.Fprint(complaint, err)
		return nil
	}
	return nil
}
