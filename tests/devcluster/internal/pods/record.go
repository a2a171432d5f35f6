// Package pods keeps the records of a node's pod sandboxes and containers on disk, so that they outlive the kubelet.
//
// One folder a container: what it is (container.json), which processes it has (running.json), how it ended (exit.json). A container
// whose processes are not recorded must never be signalled.
package pods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"rerank.dev/devcluster/internal/proc"
)

const (
	recordFile  = "container.json"
	launchFile  = "launch.json"
	runningFile = "running.json"
	exitFile    = "exit.json"
	closedFile  = "closed" // in the node's folder: no container may start any more
	ShimLog     = "shim.log"
)

// Mount is one volume, or the termination log, of a container.
type Mount struct {
	Path     string `json:"path"` // in the container
	Source   string `json:"source"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Container is what the kubelet asked for.
type Container struct {
	ID          string            `json:"id"`
	SandboxID   string            `json:"sandboxID"`
	Name        string            `json:"name"`
	Attempt     uint32            `json:"attempt"`
	Namespace   string            `json:"namespace"`
	Pod         string            `json:"pod"`
	PodIP       string            `json:"podIP"`
	Image       string            `json:"image"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	LogPath     string            `json:"logPath"`
	Argv        []string          `json:"argv"`
	Env         []string          `json:"env"`
	WorkingDir  string            `json:"workingDir"`
	Mounts      []Mount           `json:"mounts"`
	CreatedAt   time.Time         `json:"createdAt"`
}

// Processes are those of a started container: the shim, and the process it watches over, which leads its own session.
type Processes struct {
	Shim           proc.ID   `json:"shim"`
	Main           proc.ID   `json:"main"`
	MountNamespace bool      `json:"mountNamespace"`
	StartedAt      time.Time `json:"startedAt"`
}

// Exit is how a container ended. Code is 128 plus the signal where a signal ended it.
type Exit struct {
	Code    int       `json:"code"`
	Signal  int       `json:"signal,omitempty"`
	Message string    `json:"message,omitempty"`
	At      time.Time `json:"at"`
}

// Dir is the folder of one container.
type Dir string

func ContainersDir(nodeDir string) string         { return filepath.Join(nodeDir, "containers") }
func SandboxesDir(nodeDir string) string          { return filepath.Join(nodeDir, "sandboxes") }
func ContainerDir(nodeDir, id string) Dir         { return Dir(filepath.Join(ContainersDir(nodeDir), id)) }
func (d Dir) file(name string) string             { return filepath.Join(string(d), name) }
func (d Dir) LogFile() string                     { return d.file(ShimLog) }
func (d Dir) Container() (Container, error)       { return proc.ReadJSON[Container](d.file(recordFile)) }
func (d Dir) WriteContainer(c Container) error    { return proc.WriteJSON(d.file(recordFile), c) }
func (d Dir) WriteProcesses(p Processes) error    { return proc.WriteJSON(d.file(runningFile), p) }
func (d Dir) WriteExit(e Exit) error              { return proc.WriteJSON(d.file(exitFile), e) }
func (d Dir) WriteLaunch(shim proc.ID) error      { return proc.WriteJSON(d.file(launchFile), shim) }
func (d Dir) launched() (proc.ID, error)          { return proc.ReadJSON[proc.ID](d.file(launchFile)) }
func (d Dir) Processes() (Processes, bool, error) { return optional[Processes](d.file(runningFile)) }
func (d Dir) Exit() (Exit, bool, error)           { return optional[Exit](d.file(exitFile)) }

// NodeClosed says whether the node of this container is being stopped.
func (d Dir) NodeClosed() bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(string(d))), closedFile))
	return err == nil
}

// Open lets containers start on a node.
func Open(nodeDir string) error {
	if err := os.MkdirAll(ContainersDir(nodeDir), 0o700); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(nodeDir, closedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func closeNode(nodeDir string) error {
	if _, err := os.Stat(nodeDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return os.WriteFile(filepath.Join(nodeDir, closedFile), nil, 0o600)
}

func optional[T any](file string) (T, bool, error) {
	value, err := proc.ReadJSON[T](file)
	if errors.Is(err, os.ErrNotExist) {
		return value, false, nil
	}
	return value, err == nil, err
}

// Phase is what the files and the kernel together say about a container.
type Phase struct {
	Processes Processes
	Started   bool
	Exit      Exit
	Ended     bool
}

// Phase reads it. A container whose shim has gone without a word is ended here, so that it never counts as running for ever.
func (d Dir) Phase() (Phase, error) {
	var phase Phase
	var err error
	if phase.Processes, phase.Started, err = d.Processes(); err != nil || !phase.Started {
		return phase, err
	}
	alive := phase.Processes.Shim.Alive() // asked before the exit file is: the shim writes that before it goes
	if phase.Exit, phase.Ended, err = d.Exit(); err != nil || phase.Ended || alive {
		return phase, err
	}
	if err := phase.Processes.Main.SignalGroup(syscall.SIGKILL); err != nil {
		return phase, err
	}
	phase.Exit, phase.Ended = Exit{Code: 255, Message: "the process that watched this container was killed", At: time.Now()}, true
	return phase, d.WriteExit(phase.Exit)
}

// each visits the containers of a node.
func each(nodeDir string, visit func(Dir) error) error {
	entries, err := os.ReadDir(ContainersDir(nodeDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failures []error
	for _, e := range entries {
		failures = append(failures, visit(ContainerDir(nodeDir, e.Name())))
	}
	return errors.Join(failures...)
}

// Running is one container process, for whoever wants to watch it or do it harm.
type Running struct {
	Namespace      string     `json:"namespace"`
	Pod            string     `json:"pod"`
	Container      string     `json:"container"`
	Node           string     `json:"node"`
	PodIP          string     `json:"podIP"`
	PID            int        `json:"pid"`
	State          proc.State `json:"state"`
	MountNamespace bool       `json:"mountNamespace"`
	RSS            int64      `json:"rssBytes"`
	StartedAt      time.Time  `json:"startedAt"`
}

// List returns the running containers of a node.
func List(node, nodeDir string) ([]Running, error) {
	var list []Running
	err := each(nodeDir, func(d Dir) error {
		p, started, err := d.Processes()
		if err != nil || !started || !p.Main.Alive() {
			return err
		}
		c, err := d.Container()
		if err != nil {
			return err
		}
		list = append(list, Running{
			Namespace: c.Namespace, Pod: c.Pod, Container: c.Name, Node: node, PodIP: c.PodIP, PID: p.Main.PID, State: p.Main.State(),
			MountNamespace: p.MountNamespace, RSS: p.Main.Memory().RSS, StartedAt: p.StartedAt,
		})
		return nil
	})
	return list, err
}

// SignalAll sends a signal to every container of a node.
func SignalAll(nodeDir string, sig syscall.Signal) error {
	return each(nodeDir, func(d Dir) error {
		p, started, err := d.Processes()
		if err != nil || !started {
			return err
		}
		return p.Main.SignalGroup(sig)
	})
}

// StopAll ends every container of a node: all are asked, then those that have not gone in time are killed. The kubelet must be gone.
func StopAll(nodeDir string, grace time.Duration) error {
	if err := closeNode(nodeDir); err != nil {
		return err
	}
	if err := errors.Join(SignalAll(nodeDir, syscall.SIGTERM), SignalAll(nodeDir, syscall.SIGCONT)); err != nil {
		return err
	}
	deadline := time.Now().Add(grace)
	return each(nodeDir, func(d Dir) error {
		shim, err := d.launched()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		// The shim ends by itself when the container has.
		if shim.AwaitGone(max(0, time.Until(deadline))) {
			return nil
		}
		if p, started, err := d.Processes(); err != nil {
			return err
		} else if started {
			if err := p.Main.SignalGroup(syscall.SIGKILL); err != nil {
				return err
			}
		}
		if shim.AwaitGone(2 * time.Second) {
			return nil
		}
		if err := shim.Stop(0); err != nil {
			return fmt.Errorf("shim of container %s: %w", filepath.Base(string(d)), err)
		}
		return nil
	})
}

// Forget removes the records of a node whose containers have all been stopped. The next kubelet makes its pods anew.
func Forget(nodeDir string) error {
	return errors.Join(os.RemoveAll(ContainersDir(nodeDir)), os.RemoveAll(SandboxesDir(nodeDir)))
}
