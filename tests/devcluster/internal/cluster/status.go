package cluster

import (
	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/proc"
)

// Status is the cluster as `devcluster status` shows it.
type Status struct {
	Name       string            `json:"name"`
	APIServer  string            `json:"apiServer"`
	Kubeconfig string            `json:"kubeconfig"`
	Components []ComponentStatus `json:"components"`
	Total      proc.Memory       `json:"total"` // of the components; pods not counted
}

// ComponentStatus is one process of the cluster.
type ComponentStatus struct {
	Name   string      `json:"name"`
	PID    int         `json:"pid,omitempty"`
	State  proc.State  `json:"state"`
	Memory proc.Memory `json:"memory"`
	Log    string      `json:"log"`
}

// Status reads the state of all processes from the kernel.
func (d Dir) Status() (Status, error) {
	c, err := d.Load()
	if err != nil {
		return Status{}, err
	}
	s := Status{Name: c.Name, APIServer: c.APIServer(), Kubeconfig: d.Kubeconfig()}
	for _, p := range d.components(c) {
		id := d.process(p.name)
		one := ComponentStatus{Name: p.name, State: id.State(), Log: d.LogFile(p.name)}
		if one.State != proc.Gone {
			one.PID, one.Memory = id.PID, id.Memory()
		}
		s.Components = append(s.Components, one)
		s.Total.RSS += one.Memory.RSS
		s.Total.PSS += one.Memory.PSS
	}
	return s, nil
}

// Pods lists the running containers of all nodes.
func (d Dir) Pods() ([]pods.Running, error) {
	c, err := d.Load()
	if err != nil {
		return nil, err
	}
	all := []pods.Running{}
	for _, n := range c.Nodes {
		running, err := pods.List(n.Name, d.NodeDir(n.Name))
		if err != nil {
			return nil, err
		}
		all = append(all, running...)
	}
	return all, nil
}
