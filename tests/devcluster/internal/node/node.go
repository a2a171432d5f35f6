// Package node is a genuine kubelet whose container runtime starts local processes.
//
// Only the rim is its own: the runtime, the images (none), the machine's size and the mounts. It must never need root, nor write outside
// of its folder, nor stop a process that its records do not name.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/trace/noop"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/logs"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	cadvisortest "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/kubernetes/pkg/util/oom"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/configmap"
	"k8s.io/kubernetes/pkg/volume/downwardapi"
	"k8s.io/kubernetes/pkg/volume/emptydir"
	"k8s.io/kubernetes/pkg/volume/hostpath"
	"k8s.io/kubernetes/pkg/volume/projected"
	"k8s.io/kubernetes/pkg/volume/secret"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/mount-utils"

	"rerank.dev/devcluster/internal/shim"
)

// Options are the flags of `devcluster node`; `devcluster up` sets them.
type Options struct {
	Name, Dir, Kubeconfig, CA, Cert, Key, Address, PodPrefix string
	Port, APIPort, GPUs                                      int
}

func parse(args []string) (Options, error) {
	var o Options
	flags := pflag.NewFlagSet("node", pflag.ContinueOnError)
	flags.StringVar(&o.Name, "name", "", "name of the node")
	flags.StringVar(&o.Dir, "dir", "", "folder of the node")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "the node's way to the API server")
	flags.StringVar(&o.CA, "ca", "", "authority of the clients")
	flags.StringVar(&o.Cert, "cert", "", "certificate to serve with")
	flags.StringVar(&o.Key, "key", "", "its key")
	flags.StringVar(&o.Address, "address", "", "address of the node and of the API server")
	flags.StringVar(&o.PodPrefix, "pod-prefix", "", "start of the pods' addresses, e.g. 127.16.1.")
	flags.IntVar(&o.Port, "port", 0, "port of the kubelet")
	flags.IntVar(&o.APIPort, "api-port", 0, "port of the API server")
	flags.IntVar(&o.GPUs, "gpus", 0, "nvidia.com/gpu to offer")
	return o, flags.Parse(args)
}

// longestSocket is what the kernel allows for the path of a Unix socket.
const longestSocket = 107

// Run runs the node until it is told to end.
func Run(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	root := filepath.Join(o.Dir, "kubelet")
	if socket := filepath.Join(root, "pod-resources", "kubelet.sock"); len(socket) > longestSocket {
		return fmt.Errorf("the path of the state folder is %d characters too long for the kubelet's socket: choose a shorter --state", len(socket)-longestSocket)
	}
	logs.InitLogs()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	flags, config, err := settings(o, root)
	if err != nil {
		return err
	}
	deps, err := dependencies(ctx, o, root, flags, config)
	if err != nil {
		return err
	}
	kubelet.ContainerLogsDir = root // exists, so the kubelet does not make /var/log/containers
	if err := kubeletapp.RunKubelet(ctx, &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}, deps); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func settings(o Options, root string) (*options.KubeletFlags, *kubeletconfig.KubeletConfiguration, error) {
	for _, dir := range []string{root, filepath.Join(o.Dir, "logs"), filepath.Join(root, "manifests")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, nil, err
		}
	}
	f := options.NewKubeletFlags()
	f.RootDirectory, f.CertDirectory = root, filepath.Join(root, "pki")
	f.HostnameOverride = o.Name
	f.CloudProvider = "external" // so that it takes the address which `devcluster up` gave its Node: a kubelet refuses loopback addresses
	f.NodeLabels = map[string]string{"devcluster.rerank.dev/node": "true"}
	if o.GPUs > 0 {
		f.NodeLabels["nvidia.com/gpu.present"] = "true"
	}
	f.MaxPerPodContainerCount = 2

	c, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, nil, err
	}
	c.Address, c.Port, c.ReadOnlyPort, c.HealthzPort = o.Address, int32(o.Port), 0, 0
	c.TLSCertFile, c.TLSPrivateKeyFile = o.Cert, o.Key
	c.Authentication.X509.ClientCAFile = o.CA
	c.Authentication.Anonymous.Enabled = false
	c.Authentication.Webhook.Enabled = true
	c.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	c.PodLogsDir = filepath.Join(o.Dir, "logs")
	c.MaxPods = 110
	c.EnableSystemLogHandler = false // serves the machine's /var/log
	c.EnableControllerAttachDetach = false
	c.CgroupsPerQOS, c.EnforceNodeAllocatable, c.CgroupRoot = false, nil, ""
	c.FailCgroupV1 = false
	c.FailSwapOn = false
	c.LocalStorageCapacityIsolation = true
	c.EvictionHard, c.EvictionSoft = map[string]string{}, map[string]string{} // the machine's disk and memory are not the node's
	c.ImageGCHighThresholdPercent = 100                                       // off: there are no images
	c.VolumeStatsAggPeriod = metav1.Duration{Duration: -1}                    // off: it would walk through every volume
	c.ResolverConfig, c.ClusterDNS = "", []string{o.Address}                  // pods use the machine's DNS; without a server the kubelet warns about every pod
	c.ProtectKernelDefaults, c.MakeIPTablesUtilChains = false, false
	c.RegisterNode = true
	// Quicker than stock: tests wait for these.
	c.SyncFrequency = metav1.Duration{Duration: 5 * time.Second} // how soon a changed ConfigMap reaches its volume
	c.NodeStatusUpdateFrequency = metav1.Duration{Duration: 4 * time.Second}
	c.NodeStatusReportFrequency = metav1.Duration{Duration: 30 * time.Second}
	c.NodeLeaseDurationSeconds = 10
	c.MaxOpenFiles = 1 << 20
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		c.MaxOpenFiles = int64(min(limit.Max, 1<<20)) // the pods inherit it
	}
	return f, c, nil
}

func dependencies(ctx context.Context, o Options, root string, flags *options.KubeletFlags, config *kubeletconfig.KubeletConfiguration) (*kubelet.Dependencies, error) {
	rest, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	rest.QPS, rest.Burst = 100, 200
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, err
	}
	heartbeat := *rest
	heartbeat.Timeout = 5 * time.Second // a hung API server must not hold up the next heartbeat
	heartbeatClient, err := kubernetes.NewForConfig(&heartbeat)
	if err != nil {
		return nil, err
	}
	tls, err := kubeletapp.InitializeTLS(ctx, flags, config)
	if err != nil {
		return nil, err
	}
	auth, reloadCA, err := kubeletapp.BuildAuth(types.NodeName(o.Name), client, *config)
	if err != nil {
		return nil, err
	}
	reloadCA(ctx.Done())
	containers, err := newRuntime(o)
	if err != nil {
		return nil, err
	}
	plugins := append(emptydir.ProbeVolumePlugins(), secret.ProbeVolumePlugins()...)
	plugins = append(plugins, configmap.ProbeVolumePlugins()...)
	plugins = append(plugins, downwardapi.ProbeVolumePlugins()...)
	plugins = append(plugins, projected.ProbeVolumePlugins()...)
	for i, p := range plugins {
		plugins[i] = unowned{p}
	}
	plugins = append(plugins, hostpath.ProbeVolumePlugins(volume.VolumeConfig{})...)
	return &kubelet.Dependencies{
		KubeClient: client, HeartbeatClient: heartbeatClient, EventClient: client.CoreV1(),
		Auth: auth, TLSOptions: tls,
		RemoteRuntimeService: containers, RemoteImageService: images{root},
		CAdvisorInterface: machine{&cadvisortest.Fake{NodeName: o.Name}},
		ContainerManager:  newResources(o.GPUs),
		OSInterface:       hostOS{}, HostUtil: hostUtil{hostutil.NewHostUtil()},
		Mounter:     &mount.FakeMounter{}, // mounts nothing: the shim does, in the container's own namespace
		Subpather:   subpaths{},
		OOMAdjuster: oom.NewFakeOOMAdjuster(), VolumePlugins: plugins,
		PodStartupLatencyTracker: kubeletutil.NewPodStartupLatencyTracker(), NodeStartupLatencyTracker: kubeletutil.NewNodeStartupLatencyTracker(),
		TracerProvider: noop.NewTracerProvider(),
	}, nil
}

func newRuntime(o Options) (*runtime, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program := filepath.Join(filepath.Dir(self), "devcluster-shim")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("devcluster-shim must lie beside devcluster: %w", err)
	}
	store, err := openStore(o.Dir, o.PodPrefix, o.Address)
	if err != nil {
		return nil, err
	}
	streams, err := serveStreams(store)
	if err != nil {
		return nil, err
	}
	isolation := probeIsolation(program)
	fmt.Fprintf(os.Stderr, "mount namespaces of containers: %s\n", isolation)
	host, port := o.Address, fmt.Sprint(o.APIPort)
	return &runtime{
		store: store, streams: streams, shim: program, isolation: isolation, env: inherited(os.Environ()),
		// No Service address leads anywhere here, so the one to the API server is replaced by the server itself.
		override: map[string]string{
			"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, "KUBERNETES_SERVICE_PORT_HTTPS": port,
			"KUBERNETES_PORT": "tcp://" + host + ":" + port,
		},
	}, nil
}

// inherited drops what only concerns the node's own process.
func inherited(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, "GO") && !strings.HasPrefix(e, "KUBE") {
			kept = append(kept, e)
		}
	}
	return kept
}

// probeIsolation finds out by trying which mount namespaces this machine allows: policies differ, and refuse at different steps.
func probeIsolation(program string) shim.Isolation {
	kinds := []shim.Isolation{shim.PrivateUser}
	if os.Getuid() == 0 {
		kinds = []shim.Isolation{shim.Private, shim.PrivateUser}
	}
	var failures []error
	for _, kind := range kinds {
		cmd := exec.Command(program, "check")
		shim.Isolated(cmd, kind)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return kind
		}
		failures = append(failures, fmt.Errorf("%s: %w: %s", kind, err, strings.TrimSpace(string(out))))
	}
	fmt.Fprintf(os.Stderr, "no private mount namespace, so containers get %s instead: %v\n", shim.MountsVariable, errors.Join(failures...))
	return shim.None
}
