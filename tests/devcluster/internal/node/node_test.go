package node

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/volume/util/subpath"

	"rerank.dev/devcluster/internal/pods"
)

func TestNextHost(t *testing.T) {
	all := map[int]bool{}
	for i := 1; i <= 254; i++ {
		all[i] = true
	}
	most := map[int]bool{}
	for i := 1; i <= 254; i++ {
		most[i] = i != 7
	}
	for name, c := range map[string]struct {
		last int
		used map[int]bool
		want int
	}{
		"first of all":              {0, nil, 1},
		"after the last":            {5, map[int]bool{5: true}, 6},
		"a freed one is not reused": {5, nil, 6},
		"around the end":            {254, map[int]bool{1: true}, 2},
		"the only free one":         {7, most, 7},
	} {
		if got, err := nextHost(c.last, c.used); err != nil || got != c.want {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	if _, err := nextHost(3, all); err == nil {
		t.Error("no error though every address is used")
	}
}

func TestEnvironment(t *testing.T) {
	got := environment(
		[]string{"PATH=/bin", "HOME=/root"},
		[]string{"HOME=/run/home", "EMPTY=", "EQUALS=a=b", "KUBERNETES_SERVICE_HOST=10.96.0.1"},
		map[string]string{"KUBERNETES_SERVICE_HOST": "127.16.0.1", "KUBERNETES_SERVICE_PORT": "6443"},
	)
	want := []string{"PATH=/bin", "HOME=/run/home", "EMPTY=", "EQUALS=a=b", "KUBERNETES_SERVICE_HOST=127.16.0.1"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestAnotherKubeletFindsTheRecords(t *testing.T) {
	dir := t.TempDir()
	first, err := openStore(dir, "127.16.1.", "127.16.0.1")
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := first.addSandbox(Sandbox{ID: "s", Name: "pod", LogDirectory: dir})
	if err != nil || sandbox.IP != "127.16.1.1" {
		t.Fatalf("%+v, %v", sandbox, err)
	}
	host, err := first.addSandbox(Sandbox{ID: "h", HostNetwork: true})
	if err != nil || host.IP != "127.16.0.1" {
		t.Fatalf("%+v, %v", host, err)
	}
	r := &runtime{store: first}
	id, err := r.CreateContainer(context.Background(), "s", &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Command: []string{"sleep"}, Args: []string{"1"}, LogPath: "main/0.log",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(pods.ContainersDir(dir), "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}

	second, err := openStore(dir, "127.16.1.", "127.16.0.1")
	if err != nil {
		t.Fatal(err)
	}
	list, err := (&runtime{store: second}).ListContainers(context.Background(), nil)
	if err != nil || len(list) != 1 || list[0].Id != id || list[0].State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("containers %v, %v", list, err)
	}
	if next, err := second.addSandbox(Sandbox{ID: "t"}); err != nil || next.IP != "127.16.1.2" {
		t.Errorf("next sandbox %+v, %v", next, err)
	}
}

func TestAPortForwardEndsWithThePodsAnswer(t *testing.T) {
	s, err := openStore(t.TempDir(), "127.16.1.", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"s", "stopped"} {
		if _, err := s.addSandbox(Sandbox{ID: id, HostNetwork: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.stopSandbox("stopped"); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() { // answers when it has been told all
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		asked, _ := io.ReadAll(connection)
		connection.Write(append([]byte("heard "), asked...))
		connection.Close()
	}()
	port := int32(listener.Addr().(*net.TCPAddr).Port)
	var answer bytes.Buffer
	if err := (forwards{s}).PortForward(context.Background(), "s", port, client{strings.NewReader("hello"), &answer}); err != nil {
		t.Fatal(err)
	}
	if answer.String() != "heard hello" {
		t.Errorf("got %q", answer.String())
	}
	for _, id := range []string{"stopped", "never"} {
		if err := (forwards{s}).PortForward(context.Background(), id, port, client{strings.NewReader(""), &answer}); err == nil {
			t.Errorf("%s: no error", id)
		}
	}
}

type client struct {
	io.Reader
	io.Writer
}

func (client) Close() error { return nil }

func TestWhatCannotRunSaysWhy(t *testing.T) {
	s, err := openStore(t.TempDir(), "127.16.1.", "127.16.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.addSandbox(Sandbox{ID: "s"}); err != nil {
		t.Fatal(err)
	}
	r := &runtime{store: s}
	for want, c := range map[string]*runtimeapi.ContainerConfig{
		"command is required": {Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Args: []string{"--flag"}},
		"no images":           {Command: []string{"x"}, Mounts: []*runtimeapi.Mount{{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "model:1"}}}},
	} {
		if _, err := r.CreateContainer(context.Background(), "s", c, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestASubPathStaysInItsVolume(t *testing.T) {
	volume := t.TempDir()
	for _, err := range []error{os.Mkdir(filepath.Join(volume, "in"), 0o755), os.Symlink("/etc", filepath.Join(volume, "out")), os.Symlink("in", filepath.Join(volume, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, ok := range map[string]bool{"in": true, "link": true, "out": false, "missing": false, "../x": false} {
		if _, _, err := (subpaths{}).PrepareSafeSubpath(subpath.Subpath{Path: filepath.Join(volume, name), VolumePath: volume}); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
