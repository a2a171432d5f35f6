package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rerank.dev/devcluster/internal/crilog"
	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/proc"
)

// Report is the one line that the shim tells the kubelet's runtime, through file descriptor 3.
type Report struct {
	Error string `json:"error,omitempty"`
}

// ReopenSignal makes the shim go on in a new log file.
const ReopenSignal = syscall.SIGUSR1

// Isolated sets what a command needs to start in its own session and mount namespace.
func Isolated(cmd *exec.Cmd, isolation Isolation) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	switch isolation {
	case Private:
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
	case PrivateUser:
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
		// The user stays who they are, so files keep their owner; the one capability for mounts must be carried over exec.
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	}
}

// Run starts the container in dir, tells how that went through report, and watches over it until it has ended.
func Run(dir pods.Dir, isolation Isolation, report io.WriteCloser) error {
	tell := func(r Report) {
		_ = json.NewEncoder(report).Encode(r) // nobody may be listening any more
		report.Close()
	}
	w, err := start(dir, isolation)
	if err != nil {
		tell(Report{Error: err.Error()})
		return err
	}
	tell(Report{})
	return w.watch()
}

type watcher struct {
	dir    pods.Dir
	main   proc.ID
	log    *crilog.Log
	copies *sync.WaitGroup
}

func start(dir pods.Dir, isolation Isolation) (*watcher, error) {
	// Recorded before anything runs: whoever stops the node either finds this record, or has closed the node before.
	self, err := proc.Of(os.Getpid())
	if err != nil {
		return nil, err
	}
	if err := dir.WriteLaunch(self); err != nil {
		return nil, err
	}
	if dir.NodeClosed() {
		return nil, errors.New("the node is being stopped")
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	// What the container leaves behind becomes this process's child, and ends with it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper: %w", err)
	}
	c, err := dir.Container()
	if err != nil {
		return nil, err
	}
	log, err := crilog.Open(c.LogPath, time.Now)
	if err != nil {
		return nil, err
	}
	w := &watcher{dir: dir, log: log, copies: &sync.WaitGroup{}}
	if err := w.launch(isolation); err != nil {
		return nil, err
	}
	return w, nil
}

// launch starts the inner stage and waits until it has become the container's command.
func (w *watcher) launch(isolation Isolation) error {
	// Not by its path: a build may just be replacing the file.
	cmd := exec.Command("/proc/self/exe", "enter", string(w.dir), string(isolation))
	Isolated(cmd, isolation)
	var ours, theirs [3]*os.File // standard output, standard error, and what went wrong (closed by exec)
	var err error
	for i := range ours {
		if ours[i], theirs[i], err = os.Pipe(); err != nil {
			return err
		}
		defer theirs[i].Close()
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = theirs[0], theirs[1], []*os.File{theirs[2]}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the container's process: %w", err)
	}
	for _, f := range theirs {
		f.Close()
	}
	if w.main, err = proc.Of(cmd.Process.Pid); err != nil {
		return err
	}
	self, err := proc.Of(os.Getpid())
	if err != nil {
		return err
	}
	complaint, err := io.ReadAll(ours[2])
	ours[2].Close()
	if err == nil && len(complaint) > 0 {
		err = errors.New(string(complaint))
	}
	if err == nil {
		err = w.dir.WriteProcesses(pods.Processes{Shim: self, Main: w.main, MountNamespace: isolation != None, StartedAt: time.Now()})
	}
	if err != nil {
		_ = w.main.SignalGroup(syscall.SIGKILL)
		_ = cmd.Wait() // its status says no more than err does
		return err
	}
	for i, stream := range []string{crilog.Stdout, crilog.Stderr} {
		w.copies.Go(func() { w.log.Copy(stream, ours[i]) })
	}
	return nil
}

// watch waits for the container to end, ends what it left behind and writes its exit status.
func (w *watcher) watch() error {
	reopen := make(chan os.Signal, 1)
	signal.Notify(reopen, ReopenSignal)
	go func() {
		for range reopen {
			if err := w.log.Reopen(); err != nil {
				fmt.Fprintln(os.Stderr, "reopen the log:", err)
			}
		}
	}()
	status, err := w.reap()
	if err != nil {
		return err
	}
	endRest(w.main.PID)
	drained := make(chan struct{})
	go func() { w.copies.Wait(); close(drained) }()
	select { // the log is complete before anyone hears that the container has ended
	case <-drained:
	case <-time.After(2 * time.Second):
	}
	return w.dir.WriteExit(exitOf(status, time.Now()))
}

// reap waits for the main process, and for orphans as they come.
func (w *watcher) reap() (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the container: %w", err)
		case pid == w.main.PID:
			return status, nil
		}
	}
}

func exitOf(status syscall.WaitStatus, at time.Time) pods.Exit {
	if status.Signaled() {
		return pods.Exit{Code: 128 + int(status.Signal()), Signal: int(status.Signal()), At: at}
	}
	return pods.Exit{Code: status.ExitStatus(), At: at}
}

// endRest kills what the main process left behind: its group, then whatever has become this process's child.
func endRest(main int) {
	_ = syscall.Kill(-main, syscall.SIGKILL) // the group lives as long as a member does, so its number is not reused
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.ECHILD) {
			return
		}
		if pid > 0 {
			continue
		}
		for _, child := range children() {
			_ = syscall.Kill(child, syscall.SIGKILL) // a child that is not waited for keeps its pid
		}
		time.Sleep(time.Millisecond)
	}
}

// children lists the direct children of this process.
func children() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var all []int
	for _, t := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil {
				all = append(all, pid)
			}
		}
	}
	return all
}
