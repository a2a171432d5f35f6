package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/proc"
)

// Sandbox is a pod as the runtime sees it: an address and a lifetime. No process belongs to it.
type Sandbox struct {
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Namespace    string            `json:"namespace"`
	UID          string            `json:"uid"`
	Attempt      uint32            `json:"attempt"`
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	LogDirectory string            `json:"logDirectory"`
	HostNetwork  bool              `json:"hostNetwork,omitempty"`
	IP           string            `json:"ip"`
	CreatedAt    time.Time         `json:"createdAt"`
	Stopped      bool              `json:"stopped"`
}

// store holds the sandboxes and containers of a node, in memory and on disk, so that a new kubelet finds those of the one before it.
type store struct {
	dir        string
	podPrefix  string
	hostIP     string
	mu         sync.Mutex
	sandboxes  map[string]Sandbox
	containers map[string]pods.Container
	ended      map[string]pods.Phase // of containers that have ended: their files need not be read again
	lastHost   int                   // the last number of the address handed out last
}

func openStore(dir, podPrefix, hostIP string) (*store, error) {
	s := &store{
		dir: dir, podPrefix: podPrefix, hostIP: hostIP,
		sandboxes: map[string]Sandbox{}, containers: map[string]pods.Container{}, ended: map[string]pods.Phase{},
	}
	if err := os.MkdirAll(pods.SandboxesDir(s.dir), 0o700); err != nil {
		return nil, err
	}
	if err := pods.Open(dir); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(pods.SandboxesDir(s.dir), "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		sandbox, err := proc.ReadJSON[Sandbox](file)
		if err != nil {
			return nil, err
		}
		s.sandboxes[sandbox.ID] = sandbox
	}
	entries, err := os.ReadDir(pods.ContainersDir(dir))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		container, err := pods.ContainerDir(dir, e.Name()).Container()
		if errors.Is(err, os.ErrNotExist) { // the kubelet died while it made this one
			err = os.RemoveAll(filepath.Join(pods.ContainersDir(dir), e.Name()))
		} else if err == nil {
			s.containers[container.ID] = container
		}
		if err != nil {
			return nil, err
		}
	}
	if s.lastHost, err = proc.ReadJSON[int](s.lastHostFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return s, nil
}

func (s *store) sandboxFile(id string) string {
	return filepath.Join(pods.SandboxesDir(s.dir), id+".json")
}
func (s *store) lastHostFile() string         { return filepath.Join(s.dir, "last-address.json") }
func (s *store) container(id string) pods.Dir { return pods.ContainerDir(s.dir, id) }

// nextHost chooses the last number of a pod's address: the first free one after the last handed out, so that the address of a pod that
// has just gone is not soon taken for its successor's.
func nextHost(last int, used map[int]bool) (int, error) {
	for i := range 254 {
		host := (last+i)%254 + 1
		if !used[host] {
			return host, nil
		}
	}
	return 0, errors.New("all 254 pod addresses of this node are in use")
}

// addSandbox gives a sandbox its address and keeps it.
func (s *store) addSandbox(sandbox Sandbox) (Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sandbox.HostNetwork {
		sandbox.IP = s.hostIP
	} else {
		used := map[int]bool{}
		for _, other := range s.sandboxes {
			var host int
			if _, err := fmt.Sscanf(other.IP, s.podPrefix+"%d", &host); err == nil {
				used[host] = true
			}
		}
		host, err := nextHost(s.lastHost, used)
		if err != nil {
			return sandbox, err
		}
		if err := proc.WriteJSON(s.lastHostFile(), host); err != nil {
			return sandbox, err
		}
		s.lastHost, sandbox.IP = host, fmt.Sprintf("%s%d", s.podPrefix, host)
	}
	return sandbox, s.putSandbox(sandbox)
}

func (s *store) putSandbox(sandbox Sandbox) error {
	if err := proc.WriteJSON(s.sandboxFile(sandbox.ID), sandbox); err != nil {
		return err
	}
	s.sandboxes[sandbox.ID] = sandbox
	return nil
}

func (s *store) sandbox(id string) (Sandbox, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sandbox, ok := s.sandboxes[id]
	return sandbox, ok
}

func (s *store) stopSandbox(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sandbox, ok := s.sandboxes[id]
	if !ok || sandbox.Stopped {
		return nil
	}
	sandbox.Stopped = true
	return s.putSandbox(sandbox)
}

func (s *store) removeSandbox(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, id)
	if err := os.Remove(s.sandboxFile(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *store) allSandboxes() []Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Sandbox, 0, len(s.sandboxes))
	for _, sandbox := range s.sandboxes {
		all = append(all, sandbox)
	}
	return all
}

func (s *store) addContainer(c pods.Container) error {
	if err := os.MkdirAll(string(s.container(c.ID)), 0o700); err != nil {
		return err
	}
	if err := s.container(c.ID).WriteContainer(c); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.ID] = c
	return nil
}

func (s *store) findContainer(id string) (pods.Container, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	return c, ok
}

func (s *store) removeContainer(id string) error {
	s.mu.Lock()
	delete(s.containers, id)
	delete(s.ended, id)
	s.mu.Unlock()
	return os.RemoveAll(string(s.container(id)))
}

func (s *store) allContainers() []pods.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]pods.Container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	return all
}

// phase says how a container stands.
func (s *store) phase(id string) (pods.Phase, error) {
	s.mu.Lock()
	known, ok := s.ended[id]
	s.mu.Unlock()
	if ok {
		return known, nil
	}
	phase, err := s.container(id).Phase()
	if err == nil && phase.Ended {
		s.mu.Lock()
		if _, exists := s.containers[id]; exists {
			s.ended[id] = phase
		}
		s.mu.Unlock()
	}
	return phase, err
}
