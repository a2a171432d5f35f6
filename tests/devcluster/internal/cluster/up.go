package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"rerank.dev/devcluster/internal/proc"
)

// Wanted is what `up` was asked for. Nil means: not said, so an existing cluster keeps what it has.
type Wanted struct {
	Nodes          *int
	GPUs           *int
	CPUOnlyNodes   *int
	APIServerFlags []string
	Path           []string
}

const (
	defaultNodes = 1
	defaultGPUs  = 4
)

// inherited names the variables of the caller that pods get. Secrets have no place here.
var inherited = []string{
	"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
}

func or(value *int, otherwise int) int {
	if value != nil {
		return *value
	}
	return otherwise
}

// plan says what the cluster shall be: what it was, and what is asked for now. Nodes can be added, never changed or taken away.
func plan(name string, old *Config, wanted Wanted, env map[string]string) (Config, error) {
	c := Config{Name: name, APIServerFlags: wanted.APIServerFlags, Path: wanted.Path, Env: env}
	gpuNodes, cpuNodes, gpus := defaultNodes, 0, defaultGPUs
	if old != nil {
		c = *old
		gpuNodes, cpuNodes, gpus = 0, 0, defaultGPUs
		for _, n := range old.Nodes {
			if strings.HasPrefix(n.Name, gpuNodePrefix) {
				gpuNodes, gpus = gpuNodes+1, n.GPUs
			} else {
				cpuNodes++
			}
		}
		switch {
		case len(wanted.APIServerFlags) > 0 && !slices.Equal(wanted.APIServerFlags, old.APIServerFlags):
			return c, fmt.Errorf("--apiserver-flag: cluster %q was made with %q; run `devcluster down --name %s` first", name, old.APIServerFlags, name)
		case len(wanted.Path) > 0 && !slices.Equal(wanted.Path, old.Path):
			return c, fmt.Errorf("--path: cluster %q was made with %q; run `devcluster down --name %s` first", name, old.Path, name)
		case gpuNodes > 0 && or(wanted.GPUs, gpus) != gpus:
			return c, fmt.Errorf("--gpus %d: cluster %q has %d a node; run `devcluster down --name %s` first", *wanted.GPUs, name, gpus, name)
		case or(wanted.Nodes, gpuNodes) < gpuNodes:
			return c, fmt.Errorf("--nodes %d: cluster %q has %d and nodes cannot be taken away; run `devcluster down --name %s` first", *wanted.Nodes, name, gpuNodes, name)
		case or(wanted.CPUOnlyNodes, cpuNodes) < cpuNodes:
			return c, fmt.Errorf("--cpu-only-nodes %d: cluster %q has %d and nodes cannot be taken away; run `devcluster down --name %s` first", *wanted.CPUOnlyNodes, name, cpuNodes, name)
		}
	}
	gpuNodes, cpuNodes, gpus = or(wanted.Nodes, gpuNodes), or(wanted.CPUOnlyNodes, cpuNodes), or(wanted.GPUs, gpus)
	if gpuNodes < 0 || cpuNodes < 0 || gpus < 0 || gpuNodes+cpuNodes > maxNodes {
		return c, fmt.Errorf("--nodes %d, --cpu-only-nodes %d, --gpus %d: none may be negative, and at most %d nodes are possible", gpuNodes, cpuNodes, gpus, maxNodes)
	}
	add := func(prefix string, count, gpus int) {
		for i := range count {
			name := fmt.Sprintf("%s%d", prefix, i)
			if _, _, exists := c.node(name); !exists {
				c.Nodes = append(c.Nodes, NodeSpec{Name: name, GPUs: gpus})
			}
		}
	}
	add(gpuNodePrefix, gpuNodes, gpus)
	add(cpuNodePrefix, cpuNodes, 0)
	return c, nil
}

// Up brings the cluster up, or back up, and returns when it can be used. Parts that already run are left alone.
func (d Dir) Up(ctx context.Context, wanted Wanted, say func(string, ...any)) (Config, error) {
	unlock, err := d.lock(remaining(ctx))
	if err != nil {
		return Config{}, err
	}
	defer unlock()

	var old *Config
	if d.Exists() {
		loaded, err := d.Load()
		if err != nil {
			return Config{}, err
		}
		old = &loaded
	}
	for i, folder := range wanted.Path {
		if wanted.Path[i], err = filepath.Abs(folder); err != nil {
			return Config{}, fmt.Errorf("--path %q: %w", folder, err)
		}
	}
	env := map[string]string{}
	for _, name := range inherited {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	c, err := plan(filepath.Base(string(d)), old, wanted, env)
	if err != nil {
		return c, err
	}

	release := func() {}
	if d.nothingRuns(c) {
		home := c.Block
		if home == 0 {
			home = homeBlock(d)
		}
		if c.Block, release, err = claimBlock(home); err != nil {
			return c, err
		}
	}
	defer func() { release() }()
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return c, err
	}
	if err := proc.WriteJSON(d.configFile(), c); err != nil {
		return c, err
	}
	if err := d.writePKI(c); err != nil {
		return c, err
	}

	all := d.components(c)
	control, nodes := all[:4], all[4:]
	// etcd and the API server start side by side (the API server retries); the rest would give up before it is there.
	for _, p := range control[:2] {
		if err := d.ensureRunning(p, c, say); err != nil {
			return c, err
		}
	}
	for _, p := range control[:2] {
		if err := d.awaitHealthy(ctx, p); err != nil {
			return c, err
		}
	}
	release()
	say("API server answers at %s", c.APIServer())
	client, err := d.client()
	if err != nil {
		return c, err
	}
	for _, p := range control[2:] {
		if err := d.ensureRunning(p, c, say); err != nil {
			return c, err
		}
	}
	for _, n := range c.Nodes {
		if err := ensureNodeObject(ctx, client, n, c); err != nil {
			return c, err
		}
	}
	for _, p := range nodes {
		if err := d.ensureRunning(p, c, say); err != nil {
			return c, err
		}
	}
	return c, d.awaitAll(ctx, client, all)
}

func (d Dir) nothingRuns(c Config) bool {
	for _, p := range d.components(c) {
		if d.process(p.name).Alive() {
			return false
		}
	}
	return true
}

// ensureRunning starts a component that does not run and thaws one that is frozen.
func (d Dir) ensureRunning(p component, c Config, say func(string, ...any)) error {
	switch d.process(p.name).State() {
	case proc.Running:
		return nil
	case proc.Frozen:
		say("thawing %s", p.name)
		return d.thaw(p.name)
	}
	say("starting %s", p.name)
	return d.launch(p, c)
}

// awaitAll waits until every component is healthy, every node is ready to take pods and the default service account exists.
func (d Dir) awaitAll(ctx context.Context, client kubernetes.Interface, all []component) error {
	var group sync.WaitGroup
	failures := make([]error, len(all)+1)
	for i, p := range all {
		group.Go(func() { failures[i] = d.await(ctx, client, p) })
	}
	group.Go(func() {
		failures[len(all)] = poll(ctx, 50*time.Millisecond, func() (bool, error) {
			_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
			return err == nil, err
		})
	})
	group.Wait()
	return errors.Join(failures...)
}

func (d Dir) await(ctx context.Context, client kubernetes.Interface, p component) error {
	if name, isNode := strings.CutPrefix(p.name, NodePrefix); isNode {
		return d.awaitNode(ctx, client, name)
	}
	return d.awaitHealthy(ctx, p)
}

func (d Dir) awaitNode(ctx context.Context, client kubernetes.Interface, name string) error {
	component := NodePrefix + name
	started := startedAt(d.procFile(component))
	return poll(ctx, 100*time.Millisecond, func() (bool, error) {
		if d.process(component).State() == proc.Gone {
			return false, fatal{fmt.Errorf("%s has ended; its log (%s) says:\n%s", component, d.LogFile(component), tail(d.LogFile(component), 15))}
		}
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return nodeReady(node, started)
	})
}

// startedAt is when a component was last started; a node's readiness from before it says nothing.
func startedAt(procFile string) time.Time {
	info, err := os.Stat(procFile)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func nodeReady(node *corev1.Node, since time.Time) (bool, error) {
	for _, taint := range node.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule {
			return false, fmt.Errorf("node %s is tainted %s", node.Name, taint.Key)
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.Status != corev1.ConditionTrue {
			return false, fmt.Errorf("node %s is not ready: %s: %s", node.Name, condition.Reason, condition.Message)
		}
		// The API's times are in whole seconds.
		if condition.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
			return false, fmt.Errorf("node %s has not reported since it was started", node.Name)
		}
		return true, nil
	}
	return false, fmt.Errorf("node %s has not reported yet", node.Name)
}

// ensureNodeObject plays the part of a cloud's controller: it makes the Node with its address, since a kubelet refuses to find out a
// loopback address for itself. The kubelet keeps an address that is there already.
func ensureNodeObject(ctx context.Context, client kubernetes.Interface, spec NodeSpec, c Config) error {
	addresses := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: c.APIAddress()}, {Type: corev1.NodeHostName, Address: spec.Name}}
	nodes := client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, spec.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = nodes.Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: spec.Name, Labels: map[string]string{corev1.LabelHostname: spec.Name}},
			Status:     corev1.NodeStatus{Addresses: addresses},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	if len(node.Status.Addresses) > 0 && node.Status.Addresses[0] == addresses[0] {
		return nil
	}
	node.Status.Addresses = addresses
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

func (d Dir) client() (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", d.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst, config.Timeout = 50, 100, 5*time.Second
	return kubernetes.NewForConfig(config)
}

func remaining(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return time.Until(deadline)
	}
	return time.Minute
}
