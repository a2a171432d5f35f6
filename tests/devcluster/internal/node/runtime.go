package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/shim"
)

const (
	startLimit = 30 * time.Second
	watchEvery = 5 * time.Millisecond
)

// runtime is a container runtime whose containers are local processes. It has no goroutines of its own but those of port-forwards: how a
// container stands is read from its shim's files whenever the kubelet asks, which is what makes a restart of the kubelet harmless.
type runtime struct {
	unsupported
	store     *store
	streams   streaming.Server
	shim      string // the program
	isolation shim.Isolation
	env       []string          // what every container inherits
	override  map[string]string // variables that must not have the value which the kubelet gives them
}

func newID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %s not found", kind, id)
}

func (r *runtime) Version(context.Context, string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "devcluster", RuntimeVersion: "1.0.0", RuntimeApiVersion: "v1"}, nil
}

func (r *runtime) Status(context.Context, bool) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
	}}}, nil
}

func (r *runtime) RuntimeConfig(context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

func (r *runtime) UpdateRuntimeConfig(context.Context, *runtimeapi.RuntimeConfig) error { return nil }

func (r *runtime) Close(context.Context) error { return nil }

func (r *runtime) RunPodSandbox(_ context.Context, config *runtimeapi.PodSandboxConfig, _ string) (string, error) {
	m := config.GetMetadata()
	sandbox, err := r.store.addSandbox(Sandbox{
		ID: newID(), Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt(),
		Labels: config.GetLabels(), Annotations: config.GetAnnotations(), LogDirectory: config.GetLogDirectory(),
		HostNetwork: config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE,
		CreatedAt:   time.Now(),
	})
	if err != nil {
		return "", err
	}
	return sandbox.ID, os.MkdirAll(sandbox.LogDirectory, 0o755)
}

func (r *runtime) StopPodSandbox(ctx context.Context, id string) error {
	for _, c := range r.store.allContainers() {
		if c.SandboxID != id {
			continue
		}
		if err := r.StopContainer(ctx, c.ID, 0); err != nil {
			return err
		}
	}
	return r.store.stopSandbox(id)
}

func (r *runtime) RemovePodSandbox(ctx context.Context, id string) error {
	if err := r.StopPodSandbox(ctx, id); err != nil {
		return err
	}
	for _, c := range r.store.allContainers() {
		if c.SandboxID != id {
			continue
		}
		if err := r.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
	}
	return r.store.removeSandbox(id)
}

func (s Sandbox) metadata() *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: s.Name, Namespace: s.Namespace, Uid: s.UID, Attempt: s.Attempt}
}

func (s Sandbox) state() runtimeapi.PodSandboxState {
	if s.Stopped {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

func (r *runtime) PodSandboxStatus(_ context.Context, id string, _ bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	s, ok := r.store.sandbox(id)
	if !ok {
		return nil, notFound("pod sandbox", id)
	}
	network := runtimeapi.NamespaceMode_POD
	if s.HostNetwork {
		network = runtimeapi.NamespaceMode_NODE
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Id: s.ID, Metadata: s.metadata(), State: s.state(), CreatedAt: s.CreatedAt.UnixNano(), Network: &runtimeapi.PodSandboxNetworkStatus{Ip: s.IP},
		Linux:  &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{Network: network}}},
		Labels: s.Labels, Annotations: s.Annotations,
	}}, nil
}

func (r *runtime) ListPodSandbox(_ context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	var list []*runtimeapi.PodSandbox
	for _, s := range r.store.allSandboxes() {
		if filter.GetId() != "" && filter.GetId() != s.ID || filter.GetState() != nil && filter.GetState().State != s.state() || !matches(s.Labels, filter.GetLabelSelector()) {
			continue
		}
		list = append(list, &runtimeapi.PodSandbox{Id: s.ID, Metadata: s.metadata(), State: s.state(), CreatedAt: s.CreatedAt.UnixNano(), Labels: s.Labels, Annotations: s.Annotations})
	}
	return list, nil
}

func matches(labels, selector map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return true
}

func (r *runtime) CreateContainer(_ context.Context, sandboxID string, config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	sandbox, ok := r.store.sandbox(sandboxID)
	if !ok {
		return "", notFound("pod sandbox", sandboxID)
	}
	argv := append(append([]string{}, config.GetCommand()...), config.GetArgs()...)
	if len(config.GetCommand()) == 0 {
		return "", fmt.Errorf("container %q has no command: devcluster runs no images, so spec.containers[].command is required", config.GetMetadata().GetName())
	}
	given := []string{"HOSTNAME=" + sandbox.Name} // as every container runtime sets it
	for _, e := range config.GetEnvs() {
		given = append(given, e.GetKey()+"="+string(e.GetValue()))
	}
	c := pods.Container{
		ID: newID(), SandboxID: sandboxID, Name: config.GetMetadata().GetName(), Attempt: config.GetMetadata().GetAttempt(),
		Namespace: sandbox.Namespace, Pod: sandbox.Name, PodIP: sandbox.IP,
		Image: config.GetImage().GetImage(), Labels: config.GetLabels(), Annotations: config.GetAnnotations(),
		LogPath: filepath.Join(sandbox.LogDirectory, config.GetLogPath()),
		Argv:    argv, Env: environment(r.env, given, r.override), WorkingDir: config.GetWorkingDir(), CreatedAt: time.Now(),
	}
	for _, m := range config.GetMounts() {
		if m.GetImage().GetImage() != "" {
			return "", fmt.Errorf("volume at %s: devcluster has no images, so image volumes do not work here", m.GetContainerPath())
		}
		c.Mounts = append(c.Mounts, pods.Mount{Path: m.GetContainerPath(), Source: m.GetHostPath(), ReadOnly: m.GetReadonly()})
	}
	return c.ID, r.store.addContainer(c)
}

// environment joins the inherited variables, those of the pod, and those that hold in any case where the pod has them.
func environment(inherited, given []string, override map[string]string) []string {
	values := map[string]string{}
	var order []string
	for _, e := range append(append([]string{}, inherited...), given...) {
		key, value, _ := strings.Cut(e, "=")
		if _, seen := values[key]; !seen {
			order = append(order, key)
		}
		values[key] = value
	}
	env := make([]string, 0, len(order))
	for _, key := range order {
		value := values[key]
		if other, ok := override[key]; ok {
			value = other
		}
		env = append(env, key+"="+value)
	}
	return env
}

func (r *runtime) StartContainer(ctx context.Context, id string) error {
	c, ok := r.store.findContainer(id)
	if !ok {
		return notFound("container", id)
	}
	if err := os.MkdirAll(filepath.Dir(c.LogPath), 0o755); err != nil {
		return err
	}
	dir := r.store.container(id)
	log, err := os.OpenFile(dir.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	listen, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer listen.Close()
	cmd := exec.Command(r.shim, "run", string(dir), string(r.isolation))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return fmt.Errorf("start the container's shim: %w", err)
	}
	go cmd.Wait() // reaps it, as long as this kubelet lives
	deadline := time.Now().Add(startLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := listen.SetReadDeadline(deadline); err != nil {
		return err
	}
	var report shim.Report
	if err := json.NewDecoder(listen).Decode(&report); err != nil {
		return fmt.Errorf("the container's shim has not said whether it started (%w); see %s", err, dir.LogFile())
	}
	if report.Error != "" {
		return fmt.Errorf("container %q did not start: %s", c.Name, report.Error)
	}
	return nil
}

func (r *runtime) StopContainer(ctx context.Context, id string, timeout int64) error {
	if _, ok := r.store.findContainer(id); !ok {
		return nil
	}
	phase, err := r.store.phase(id)
	if err != nil || !phase.Started || phase.Ended {
		return err
	}
	if timeout > 0 {
		if err := phase.Processes.Main.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if ended, err := r.awaitEnd(ctx, id, time.Duration(timeout)*time.Second); ended || err != nil {
			return err
		}
	}
	if err := phase.Processes.Main.SignalGroup(syscall.SIGKILL); err != nil {
		return err
	}
	ended, err := r.awaitEnd(ctx, id, 10*time.Second)
	if err == nil && !ended {
		err = fmt.Errorf("container %s is still there 10 s after SIGKILL", id)
	}
	return err
}

func (r *runtime) awaitEnd(ctx context.Context, id string, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		phase, err := r.store.phase(id)
		if err != nil || phase.Ended {
			return phase.Ended, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(watchEvery):
		}
	}
}

func (r *runtime) RemoveContainer(ctx context.Context, id string) error {
	if err := r.StopContainer(ctx, id, 0); err != nil {
		return err
	}
	return r.store.removeContainer(id)
}

func stateOf(p pods.Phase) runtimeapi.ContainerState {
	switch {
	case p.Ended:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case p.Started:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

func metadataOf(c pods.Container) *runtimeapi.ContainerMetadata {
	return &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: c.Attempt}
}

func (r *runtime) ListContainers(_ context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	var list []*runtimeapi.Container
	for _, c := range r.store.allContainers() {
		if filter.GetId() != "" && filter.GetId() != c.ID || filter.GetPodSandboxId() != "" && filter.GetPodSandboxId() != c.SandboxID || !matches(c.Labels, filter.GetLabelSelector()) {
			continue
		}
		phase, err := r.store.phase(c.ID)
		if err != nil {
			return nil, err
		}
		if filter.GetState() != nil && filter.GetState().State != stateOf(phase) {
			continue
		}
		list = append(list, &runtimeapi.Container{
			Id: c.ID, PodSandboxId: c.SandboxID, Metadata: metadataOf(c), Image: &runtimeapi.ImageSpec{Image: c.Image}, ImageRef: c.Image, ImageId: c.Image,
			State: stateOf(phase), CreatedAt: c.CreatedAt.UnixNano(), Labels: c.Labels, Annotations: c.Annotations,
		})
	}
	return list, nil
}

func (r *runtime) ContainerStatus(_ context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	c, ok := r.store.findContainer(id)
	if !ok {
		return nil, notFound("container", id)
	}
	phase, err := r.store.phase(id)
	if err != nil {
		return nil, err
	}
	s := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: metadataOf(c), State: stateOf(phase), CreatedAt: c.CreatedAt.UnixNano(),
		Image: &runtimeapi.ImageSpec{Image: c.Image}, ImageRef: c.Image, ImageId: c.Image, Labels: c.Labels, Annotations: c.Annotations, LogPath: c.LogPath,
	}
	for _, m := range c.Mounts {
		// The kubelet finds the termination message on the host through these.
		s.Mounts = append(s.Mounts, &runtimeapi.Mount{ContainerPath: m.Path, HostPath: m.Source, Readonly: m.ReadOnly})
	}
	if phase.Started {
		s.StartedAt = phase.Processes.StartedAt.UnixNano()
	}
	if phase.Ended {
		s.FinishedAt, s.ExitCode, s.Message, s.Reason = phase.Exit.At.UnixNano(), int32(phase.Exit.Code), phase.Exit.Message, "Completed"
		if s.ExitCode != 0 {
			s.Reason = "Error"
		}
	}
	return &runtimeapi.ContainerStatusResponse{Status: s}, nil
}

func (r *runtime) ReopenContainerLog(_ context.Context, id string) error {
	phase, err := r.store.phase(id)
	if err != nil {
		return err
	}
	return phase.Processes.Shim.Signal(shim.ReopenSignal)
}
