// Package cluster brings a local Kubernetes up and down: its files, addresses, certificates and processes.
//
// Everything a cluster owns lies in one folder, and every process it starts is recorded there. It must never stop a process that is not
// recorded, listen anywhere but on loopback, or touch the user's own kubeconfig.
package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"rerank.dev/devcluster/internal/proc"
)

const (
	apiPort           = 6443
	etcdPort          = 2379
	etcdPeerPort      = 2380
	controllerPort    = 10257
	schedulerPort     = 10259
	firstKubeletPort  = 10300
	claimPort         = 2378 // held while a cluster starts, so that two starting at once never choose the same addresses
	maxNodes          = 200
	DefaultStateDir   = ".state/clusters"
	DefaultName       = "dev"
	gpuNodePrefix     = "gpu-"
	cpuNodePrefix     = "cpu-"
	NodePrefix        = "node/"
	nodeServerAccount = "system:node:"
)

// NodeSpec is one node as it was asked for.
type NodeSpec struct {
	Name string `json:"name"`
	GPUs int    `json:"gpus"`
}

// Config is what a cluster was made with; it is kept in its folder.
type Config struct {
	Name           string            `json:"name"`
	Block          int               `json:"block"` // the cluster's addresses are 127.Block.0.0/16
	Nodes          []NodeSpec        `json:"nodes"`
	APIServerFlags []string          `json:"apiserverFlags,omitempty"`
	Path           []string          `json:"path,omitempty"` // folders searched for the pods' commands before the PATH of Env
	Env            map[string]string `json:"env"`            // what the pods inherit
}

// APIAddress is where all components of the cluster listen.
func (c Config) APIAddress() string { return fmt.Sprintf("127.%d.0.1", c.Block) }

// APIServer is the URL of the API server.
func (c Config) APIServer() string { return fmt.Sprintf("https://%s:%d", c.APIAddress(), apiPort) }

// PodPrefix is the start of the addresses of a node's pods; the last number is missing.
func (c Config) PodPrefix(nodeIndex int) string {
	return fmt.Sprintf("127.%d.%d.", c.Block, nodeIndex+1)
}

// SearchPath is the PATH of the pods.
func (c Config) SearchPath() string {
	path := slices.Clone(c.Path)
	if c.Env["PATH"] != "" {
		path = append(path, c.Env["PATH"])
	}
	return strings.Join(path, string(os.PathListSeparator))
}

func (c Config) node(name string) (int, NodeSpec, bool) {
	for i, n := range c.Nodes {
		if n.Name == name {
			return i, n, true
		}
	}
	return 0, NodeSpec{}, false
}

// Dir is the folder of one cluster.
type Dir string

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// OpenDir names the folder of a cluster; it need not exist.
func OpenDir(state, name string) (Dir, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("--name %q: use 1 to 32 lower-case letters, digits and dashes", name)
	}
	abs, err := filepath.Abs(state)
	if err != nil {
		return "", fmt.Errorf("--state %q: %w", state, err)
	}
	// A real path, since the pods of a cluster see their files through it from another mount namespace.
	if resolved, err := filepath.EvalSymlinks(abs); err == nil {
		abs = resolved
	}
	return Dir(filepath.Join(abs, name)), nil
}

func (d Dir) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}
func (d Dir) configFile() string     { return d.path("cluster.json") }
func (d Dir) Kubeconfig() string     { return d.path("kubeconfig") }
func (d Dir) pki(name string) string { return d.path("pki", name) }
func (d Dir) procFile(component string) string {
	return d.path("processes", fileName(component)+".json")
}
func (d Dir) LogFile(component string) string { return d.path("logs", fileName(component)+".log") }
func (d Dir) NodeDir(node string) string      { return d.path("nodes", node) }
func (d Dir) lockFile() string {
	return filepath.Join(filepath.Dir(string(d)), "."+filepath.Base(string(d))+".lock")
}

func fileName(component string) string { return strings.ReplaceAll(component, "/", "-") }

// Exists says whether there is a cluster in the folder.
func (d Dir) Exists() bool {
	_, err := os.Stat(d.configFile())
	return err == nil
}

// Load returns what the cluster was made with.
func (d Dir) Load() (Config, error) {
	c, err := proc.ReadJSON[Config](d.configFile())
	if errors.Is(err, os.ErrNotExist) {
		return c, fmt.Errorf("there is no cluster %q in %s: create it with `devcluster up --name %s`",
			filepath.Base(string(d)), filepath.Dir(string(d)), filepath.Base(string(d)))
	}
	return c, err
}

// Names lists the clusters in a state folder.
func Names(state string) ([]string, error) {
	entries, err := os.ReadDir(state)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && Dir(filepath.Join(state, e.Name())).Exists() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
