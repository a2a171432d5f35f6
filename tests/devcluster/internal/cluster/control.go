package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/proc"
)

const stopGrace = 10 * time.Second

// Stop ends one component. The pods of a node go on, as they do when a kubelet dies.
func (d Dir) Stop(ctx context.Context, name string) error {
	return d.change(ctx, name, func(id proc.ID) error { return id.Stop(stopGrace) })
}

// Kill ends one component without warning.
func (d Dir) Kill(ctx context.Context, name string) error {
	return d.change(ctx, name, func(id proc.ID) error { return id.Stop(0) })
}

// Freeze stops the clock of one component; of a node's pods too when withPods is set, as if the whole machine hung.
func (d Dir) Freeze(ctx context.Context, name string, withPods bool) error {
	return d.change(ctx, name, func(id proc.ID) error {
		return errors.Join(d.signalPods(name, withPods, syscall.SIGSTOP), id.Signal(syscall.SIGSTOP))
	})
}

// Thaw lets a frozen component go on, and the pods of a node.
func (d Dir) Thaw(ctx context.Context, name string) error {
	return d.change(ctx, name, func(proc.ID) error { return d.thaw(name) })
}

func (d Dir) thaw(name string) error {
	return errors.Join(d.process(name).Signal(syscall.SIGCONT), d.signalPods(name, true, syscall.SIGCONT))
}

func (d Dir) signalPods(name string, withPods bool, sig syscall.Signal) error {
	node, isNode := strings.CutPrefix(name, NodePrefix)
	if !withPods {
		return nil
	}
	if !isNode {
		if sig == syscall.SIGCONT {
			return nil
		}
		return fmt.Errorf("--with-pods: %s has no pods, only a node has", name)
	}
	return pods.SignalAll(d.NodeDir(node), sig)
}

// change finds a running component and does something to it.
func (d Dir) change(ctx context.Context, name string, act func(proc.ID) error) error {
	if _, err := d.Load(); err != nil { // before there is a lock file for a cluster that does not exist
		return err
	}
	unlock, err := d.lock(remaining(ctx))
	if err != nil {
		return err
	}
	defer unlock()
	c, err := d.Load()
	if err != nil {
		return err
	}
	if _, err := d.component(c, name); err != nil {
		return err
	}
	id := d.process(name)
	if !id.Alive() {
		return fmt.Errorf("%s of cluster %q does not run: start it with `devcluster start %s --name %s`", name, c.Name, name, c.Name)
	}
	return act(id)
}

// Start brings one component back and waits until it is healthy. It keeps its address and data.
func (d Dir) Start(ctx context.Context, name string, say func(string, ...any)) error {
	if _, err := d.Load(); err != nil { // before there is a lock file for a cluster that does not exist
		return err
	}
	unlock, err := d.lock(remaining(ctx))
	if err != nil {
		return err
	}
	defer unlock()
	c, err := d.Load()
	if err != nil {
		return err
	}
	p, err := d.component(c, name)
	if err != nil {
		return err
	}
	if err := d.ensureRunning(p, c, say); err != nil {
		return err
	}
	client, err := d.client()
	if err != nil {
		return err
	}
	return d.await(ctx, client, p)
}

// Down stops all processes of the cluster and removes its folder, unless the data shall be kept for another `up`.
func (d Dir) Down(ctx context.Context, keepData bool) error {
	if _, err := os.Stat(string(d)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := d.lock(remaining(ctx))
	if err != nil {
		return err
	}
	defer unlock()
	c, err := d.Load()
	if err != nil && d.Exists() {
		return err
	}
	// The kubelets first, or they would restart the pods; then the pods; then the control plane, its store last.
	var kubelets, control []string
	for _, n := range c.Nodes {
		kubelets = append(kubelets, NodePrefix+n.Name)
	}
	grace := time.Duration(0)
	if keepData {
		grace = stopGrace
		control = []string{Controller, Scheduler, APIServer}
	} else {
		control = []string{Controller, Scheduler, APIServer, Etcd} // its data goes anyway
	}
	failures := []error{d.stopAll(kubelets, 0), d.stopPods(c), d.stopAll(control, grace)}
	if keepData {
		failures = append(failures, d.stopAll([]string{Etcd}, grace))
	}
	if err := errors.Join(failures...); err != nil {
		return err // the folder stays: it is the only record of what still runs
	}
	if keepData {
		return nil
	}
	if err := os.RemoveAll(string(d)); err != nil {
		return err
	}
	return os.Remove(d.lockFile())
}

func (d Dir) stopAll(names []string, grace time.Duration) error {
	return together(names, func(name string) error { return d.process(name).Stop(grace) })
}

func (d Dir) stopPods(c Config) error {
	return together(c.Nodes, func(n NodeSpec) error {
		if err := pods.StopAll(d.NodeDir(n.Name), stopGrace); err != nil {
			return err
		}
		return pods.Forget(d.NodeDir(n.Name))
	})
}

func together[T any](items []T, act func(T) error) error {
	failures := make([]error, len(items))
	var group sync.WaitGroup
	for i, item := range items {
		group.Go(func() { failures[i] = act(item) })
	}
	group.Wait()
	return errors.Join(failures...)
}
