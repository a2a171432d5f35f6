package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cadvisor "github.com/google/cadvisor/info/v1"
	cadvisorv2 "github.com/google/cadvisor/info/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cadvisortest "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/kubernetes/pkg/volume/util/subpath"
)

// What a node offers, whatever the machine has: the same pods must fit on a laptop and on a server. Nothing is enforced.
const (
	nodeCPUs   = 64
	nodeMemory = 256 << 30
	nodeDisk   = 1 << 40
)

// machine tells the kubelet about the node instead of cAdvisor, which would need cgroups.
type machine struct{ *cadvisortest.Fake }

func (m machine) MachineInfo() (*cadvisor.MachineInfo, error) {
	info, err := m.Fake.MachineInfo()
	if err == nil {
		info.NumCores, info.MemoryCapacity = nodeCPUs, nodeMemory
	}
	return info, err
}

func (machine) VersionInfo() (*cadvisor.VersionInfo, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	return &cadvisor.VersionInfo{KernelVersion: strings.TrimSpace(string(kernel)), ContainerOsVersion: "local processes"}, err
}

var roomy = cadvisorv2.FsInfo{Capacity: nodeDisk, Available: nodeDisk, Inodes: new(uint64(1 << 30)), InodesFree: new(uint64(1 << 30))}

func (machine) ImagesFsInfo(context.Context) (cadvisorv2.FsInfo, error)    { return roomy, nil }
func (machine) ContainerFsInfo(context.Context) (cadvisorv2.FsInfo, error) { return roomy, nil }
func (machine) RootFsInfo() (cadvisorv2.FsInfo, error)                     { return roomy, nil }
func (machine) GetDirFsInfo(string) (cadvisorv2.FsInfo, error)             { return roomy, nil }

// ContainerInfoV2 answers for the root cgroup, after which the eviction manager asks every ten seconds.
func (machine) ContainerInfoV2(name string, _ cadvisorv2.RequestOptions) (map[string]cadvisorv2.ContainerInfo, error) {
	return map[string]cadvisorv2.ContainerInfo{name: {Stats: []*cadvisorv2.ContainerStats{{Timestamp: time.Now()}}}}, nil
}

// resources stands in for the container manager: no cgroups, but GPUs and local storage to be counted by the scheduler.
type resources struct{ cm.ContainerManager }

func newResources(gpus int) resources {
	offered := corev1.ResourceList{}
	if gpus > 0 {
		offered["nvidia.com/gpu"] = *resource.NewQuantity(int64(gpus), resource.DecimalSI)
	}
	return resources{cm.NewStubContainerManagerWithDevicePluginResource(offered)}
}

func (resources) GetCapacity(bool) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceEphemeralStorage: *resource.NewQuantity(nodeDisk, resource.BinarySI)}
}

func (r resources) NewPodContainerManager() cm.PodContainerManager {
	return noCgroups{r.ContainerManager.NewPodContainerManager()}
}

// noCgroups says of every pod that nothing limits it; the stub's answer is an error, which would fill the log.
type noCgroups struct{ cm.PodContainerManager }

func (noCgroups) GetPodCgroupConfig(*corev1.Pod, corev1.ResourceName) (*cm.ResourceConfig, error) {
	return &cm.ResourceConfig{CPUShares: new(uint64(0)), CPUQuota: new(int64(0)), CPUPeriod: new(uint64(0)), Memory: new(int64(0))}, nil
}

// hostOS is the machine, but for the log links that a kubelet puts under /var/log/containers for log collectors.
type hostOS struct{ kubecontainer.RealOS }

const logLinks = "/var/log/containers"

func (hostOS) Symlink(old, path string) error {
	if filepath.Dir(path) == logLinks {
		return nil
	}
	return os.Symlink(old, path)
}

// hostUtil looks at the machine's file system and leaves its mounts alone: the kubelet would make its folder a shared mount, which only
// root can, and which would keep the folder from being removed.
type hostUtil struct{ *hostutil.HostUtil }

func (hostUtil) MakeRShared(string) error { return nil }

// Paths below a volume are used as they are: the shim binds them, so no bind mount of the kubelet's is needed.
type subpaths struct{}

var _ subpath.Interface = subpaths{}

func (subpaths) CleanSubPaths(string, string) error { return nil }

func (subpaths) PrepareSafeSubpath(s subpath.Subpath) (string, func(), error) {
	path, err := filepath.EvalSymlinks(s.Path)
	if err != nil {
		return "", nil, fmt.Errorf("subPath of volume %q: %w", s.VolumeName, err)
	}
	root, err := filepath.EvalSymlinks(s.VolumePath)
	if err != nil {
		return "", nil, fmt.Errorf("volume %q: %w", s.VolumeName, err)
	}
	if path != root && !strings.HasPrefix(path, root+"/") {
		return "", nil, fmt.Errorf("subPath of volume %q leads out of the volume", s.VolumeName)
	}
	return path, func() {}, nil
}

func (subpaths) SafeMakeDir(dir, base string, perm os.FileMode) error {
	return os.MkdirAll(filepath.Join(base, dir), perm)
}

// unowned keeps a volume plugin from giving files to another user: all containers run as the user of the node, and only root could.
type unowned struct{ volume.VolumePlugin }

func (p unowned) NewMounter(spec *volume.Spec, pod *corev1.Pod) (volume.Mounter, error) {
	m, err := p.VolumePlugin.NewMounter(spec, pod)
	if err != nil {
		return nil, err
	}
	return unownedMounter{m}, nil
}

type unownedMounter struct{ volume.Mounter }

func (m unownedMounter) SetUp(args volume.MounterArgs) error {
	args.FsUser, args.FsGroup = nil, nil
	return m.Mounter.SetUp(args)
}

func (m unownedMounter) SetUpAt(dir string, args volume.MounterArgs) error {
	args.FsUser, args.FsGroup = nil, nil
	return m.Mounter.SetUpAt(dir, args)
}
