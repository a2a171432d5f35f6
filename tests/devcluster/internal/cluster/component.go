package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rerank.dev/devcluster/internal/proc"
)

const (
	Etcd       = "etcd"
	APIServer  = "apiserver"
	Controller = "controller-manager"
	Scheduler  = "scheduler"
)

// component is one process of the cluster: how it is started and how one sees that it works.
type component struct {
	name   string
	args   []string
	health string // URL that answers 200; empty for a node, whose health is its Node object's
}

func (d Dir) components(c Config) []component {
	address := c.APIAddress()
	url := func(port int) string { return fmt.Sprintf("https://%s:%d", address, port) }
	serving := []string{"--tls-cert-file=" + d.pki("server.crt"), "--tls-private-key-file=" + d.pki("server.key")}
	all := []component{
		{
			name: Etcd, health: url(etcdPort) + "/health",
			args: []string{
				"etcd", "--name=devcluster", "--data-dir=" + d.path("etcd"), "--log-level=warn",
				"--unsafe-no-fsync", // survives kill -9, though not a crash of the machine: a test's cluster need not
				"--listen-client-urls=" + url(etcdPort), "--advertise-client-urls=" + url(etcdPort),
				"--listen-peer-urls=" + url(etcdPeerPort), "--initial-advertise-peer-urls=" + url(etcdPeerPort),
				"--initial-cluster=devcluster=" + url(etcdPeerPort),
				"--client-cert-auth", "--trusted-ca-file=" + d.pki("ca.crt"), "--cert-file=" + d.pki("server.crt"), "--key-file=" + d.pki("server.key"),
				"--peer-client-cert-auth", "--peer-trusted-ca-file=" + d.pki("ca.crt"), "--peer-cert-file=" + d.pki("server.crt"), "--peer-key-file=" + d.pki("server.key"),
			},
		},
		{
			name: APIServer, health: url(apiPort) + "/readyz",
			args: append(append([]string{
				"kube-apiserver", "--bind-address=" + address, "--secure-port=" + strconv.Itoa(apiPort),
				"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none", // a loopback address is refused; this one, for documentation, is never used
				"--external-hostname=" + address,
				"--etcd-servers=" + url(etcdPort), "--etcd-cafile=" + d.pki("ca.crt"), "--etcd-certfile=" + d.pki("etcd-client.crt"), "--etcd-keyfile=" + d.pki("etcd-client.key"),
				"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--client-ca-file=" + d.pki("ca.crt"),
				"--service-cluster-ip-range=10.96.0.0/16",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + d.pki("service-accounts.key"), "--service-account-signing-key-file=" + d.pki("service-accounts.key"),
				"--kubelet-certificate-authority=" + d.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
				"--kubelet-client-certificate=" + d.pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + d.pki("apiserver-kubelet.key"),
				"--default-not-ready-toleration-seconds=30", "--default-unreachable-toleration-seconds=30", // ten times shorter than stock: tests wait for it
				"--profiling=false",
			}, serving...), c.APIServerFlags...),
		},
		{
			name: Controller, health: url(controllerPort) + "/healthz",
			args: append([]string{
				"kube-controller-manager", "--kubeconfig=" + d.pki("controller-manager.kubeconfig"), "--leader-elect=false",
				"--bind-address=" + address, "--secure-port=" + strconv.Itoa(controllerPort), "--authentication-skip-lookup",
				"--authorization-kubeconfig=" + d.pki("controller-manager.kubeconfig"),
				"--use-service-account-credentials", "--service-account-private-key-file=" + d.pki("service-accounts.key"), "--root-ca-file=" + d.pki("ca.crt"),
				"--controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller", // loopback addresses are refused in their objects
				"--node-monitor-period=2s", "--node-monitor-grace-period=16s",
				"--kube-api-qps=200", "--kube-api-burst=400", "--profiling=false",
			}, serving...),
		},
		{
			name: Scheduler, health: url(schedulerPort) + "/healthz",
			args: append([]string{
				"kube-scheduler", "--kubeconfig=" + d.pki("scheduler.kubeconfig"), "--leader-elect=false",
				"--bind-address=" + address, "--secure-port=" + strconv.Itoa(schedulerPort), "--authentication-skip-lookup",
				"--authorization-kubeconfig=" + d.pki("scheduler.kubeconfig"),
				"--kube-api-qps=200", "--kube-api-burst=400", "--profiling=false",
			}, serving...),
		},
	}
	for i, n := range c.Nodes {
		all = append(all, component{
			name: NodePrefix + n.Name,
			args: []string{
				"node", "--name=" + n.Name, "--dir=" + d.NodeDir(n.Name), "--kubeconfig=" + d.pki("node-"+n.Name+".kubeconfig"),
				"--ca=" + d.pki("ca.crt"), "--cert=" + d.pki("server.crt"), "--key=" + d.pki("server.key"),
				"--address=" + address, "--port=" + strconv.Itoa(firstKubeletPort+i), "--api-port=" + strconv.Itoa(apiPort), "--pod-prefix=" + c.PodPrefix(i), "--gpus=" + strconv.Itoa(n.GPUs),
			},
		})
	}
	return all
}

// component finds one of the cluster's processes by name.
func (d Dir) component(c Config, name string) (component, error) {
	var names []string
	for _, p := range d.components(c) {
		if p.name == name {
			return p, nil
		}
		names = append(names, p.name)
	}
	return component{}, fmt.Errorf("cluster %q has no component %q: it has %s", c.Name, name, strings.Join(names, ", "))
}

// process returns the recorded process of a component, or one that is Gone.
func (d Dir) process(name string) proc.ID {
	id, err := proc.ReadJSON[proc.ID](d.procFile(name))
	if err != nil {
		return proc.ID{}
	}
	return id
}

// launch starts a component in a session of its own, so that it outlives this command and no terminal's signal reaches it.
func (d Dir) launch(p component, c Config) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, file := range []string{d.LogFile(p.name), d.procFile(p.name)} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(d.LogFile(p.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s devcluster starts %s\n", time.Now().Format(time.RFC3339), p.name)
	cmd := exec.Command(self, p.args...)
	cmd.Dir = string(d)
	cmd.Env = c.environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	id, err := proc.Of(cmd.Process.Pid)
	if err == nil {
		err = proc.WriteJSON(d.procFile(p.name), id)
	}
	if err != nil {
		cmd.Process.Kill()
		return fmt.Errorf("record the process of %s: %w", p.name, err)
	}
	go cmd.Wait() // reap it if it ends while this command still runs
	return nil
}

func (c Config) environment() []string {
	env := []string{"PATH=" + c.SearchPath()}
	for k, v := range c.Env {
		if k != "PATH" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// healthClient trusts only the cluster's authority and shows the administrator's certificate.
func (d Dir) healthClient() (*http.Client, error) {
	ca, err := os.ReadFile(d.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(d.pki("admin.crt"), d.pki("admin.key"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, DisableKeepAlives: true},
	}, nil
}

// healthy asks a component of the control plane once.
func (d Dir) healthy(ctx context.Context, p component) error {
	client, err := d.healthClient()
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.health, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 500))
		return fmt.Errorf("%s answers %s: %s", p.health, response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// awaitHealthy waits until a component of the control plane works, and ends early when its process has ended.
func (d Dir) awaitHealthy(ctx context.Context, p component) error {
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		err := d.healthy(ctx, p)
		if err == nil {
			return true, nil
		}
		if d.process(p.name).State() == proc.Gone {
			return false, fatal{fmt.Errorf("%s has ended; its log (%s) says:\n%s", p.name, d.LogFile(p.name), tail(d.LogFile(p.name), 15))}
		}
		return false, fmt.Errorf("%s is not ready: %w", p.name, err)
	})
}

// fatal ends a poll at once.
type fatal struct{ error }

// poll repeats a check until it is true, the context ends, or the error is fatal. At the deadline it returns the last reason.
func poll(ctx context.Context, every time.Duration, check func() (bool, error)) error {
	for {
		done, err := check()
		if done {
			return nil
		}
		var stop fatal
		if errors.As(err, &stop) {
			return stop.error
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("%w (%w)", err, ctx.Err())
			}
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

func tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
