package shim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rerank.dev/devcluster/internal/pods"
	"rerank.dev/devcluster/internal/proc"
)

// TestMain lets this test binary be the shim that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "run" {
		if err := Run(pods.Dir(os.Args[2]), Isolation(os.Args[3]), os.NewFile(3, "report")); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "enter" {
		f, err := Complaint(3)
		if err == nil {
			err = Enter(pods.Dir(os.Args[2]), Isolation(os.Args[3]))
			fmt.Fprint(f, err)
		}
		os.Exit(1)
	}
	if len(os.Args) == 2 && os.Args[1] == "check" {
		if err := Check(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type running struct {
	dir pods.Dir
	log string
	id  proc.ID
}

// run starts a container and returns what its shim reports.
func run(t *testing.T, isolation Isolation, c pods.Container) (running, Report) {
	t.Helper()
	node := t.TempDir()
	if err := pods.Open(node); err != nil {
		t.Fatal(err)
	}
	dir := pods.ContainerDir(node, "c")
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	c.LogPath = filepath.Join(node, "log")
	c.Env = append(c.Env, "PATH="+os.Getenv("PATH"))
	if err := dir.WriteContainer(c); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	listen, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "run", string(dir), string(isolation))
	cmd.ExtraFiles = []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tell.Close()
	go cmd.Wait()
	var report Report
	if err := json.NewDecoder(listen).Decode(&report); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pods.StopAll(node, 0); err != nil {
			t.Error(err)
		}
	})
	p, _, err := dir.Processes()
	if err != nil {
		t.Fatal(err)
	}
	return running{dir: dir, log: c.LogPath, id: p.Main}, report
}

func (r running) exit(t *testing.T) pods.Exit {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		exit, ended, err := r.dir.Exit()
		if err != nil {
			t.Fatal(err)
		}
		if ended {
			return exit
		}
		if time.Now().After(deadline) {
			t.Fatal("the container has not ended")
		}
	}
}

func (r running) output(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for line := range bytes.Lines(b) {
		text.Write(bytes.SplitN(line, []byte(" "), 4)[3])
	}
	return text.String()
}

func isolation(t *testing.T) Isolation {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []Isolation{Private, PrivateUser} {
		cmd := exec.Command(self, "check")
		Isolated(cmd, kind)
		if cmd.Run() == nil {
			return kind
		}
	}
	t.Skip("this machine allows no private mount namespace")
	return None
}

func TestExitStatus(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		code   int
		signal int
	}{
		"success": {"true", 0, 0},
		"failure": {"exit 3", 3, 0},
		"signal":  {"kill -9 $$", 137, 9},
		"request": {"kill $$; sleep 60", 143, 15},
	} {
		t.Run(name, func(t *testing.T) {
			r, report := run(t, None, pods.Container{Argv: []string{"sh", "-c", "echo out; echo err >&2; " + c.script}})
			if report.Error != "" {
				t.Fatal(report.Error)
			}
			if exit := r.exit(t); exit.Code != c.code || exit.Signal != c.signal {
				t.Errorf("got %+v", exit)
			}
			if out := r.output(t); !strings.Contains(out, "out\n") || !strings.Contains(out, "err\n") {
				t.Errorf("output %q", out)
			}
		})
	}
}

func TestNothingOutlivesTheMainProcess(t *testing.T) {
	r, report := run(t, None, pods.Container{Argv: []string{"sh", "-c", "setsid sleep 300 & echo $!; sleep 300 & echo $!; wait"}})
	if report.Error != "" {
		t.Fatal(report.Error)
	}
	var children []proc.ID
	for deadline := time.Now().Add(20 * time.Second); len(children) < 2; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("output %q", r.output(t))
		}
		children = nil
		for pid := range strings.FieldsSeq(r.output(t)) {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			id, err := proc.Of(n)
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, id)
		}
	}
	if err := r.id.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.exit(t)
	for _, child := range children {
		if child.Alive() {
			t.Errorf("process %d outlived its container", child.PID)
		}
	}
}

func TestWhyAContainerDidNotStart(t *testing.T) {
	for name, c := range map[string]struct {
		container pods.Container
		want      string
	}{
		"unknown command":   {pods.Container{Argv: []string{"no-such-command"}}, `command "no-such-command"`},
		"not a program":     {pods.Container{Argv: []string{"/etc/passwd"}}, "permission denied"},
		"no such directory": {pods.Container{Argv: []string{"true"}, WorkingDir: "/no/such/folder"}, "workingDir"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, report := run(t, None, c.container); !strings.Contains(report.Error, c.want) {
				t.Errorf("got %q", report.Error)
			}
		})
	}
}

func TestMountsAreInPlace(t *testing.T) {
	kind := isolation(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "key"), []byte("value\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := "cat /run/config/key /run/file; touch /run/config/x 2>/dev/null || echo read-only; touch /run/data/y && echo $DEVCLUSTER_MOUNTS"
	data := t.TempDir()
	r, report := run(t, kind, pods.Container{
		Argv: []string{"sh", "-c", script},
		Mounts: []pods.Mount{
			{Path: "/run/config", Source: volume, ReadOnly: true},
			{Path: "/run/file", Source: filepath.Join(volume, "key")},
			{Path: "/run/data", Source: data},
			{Path: "/no/such/path", Source: data},
		},
	})
	if report.Error != "" {
		t.Fatal(report.Error)
	}
	exit := r.exit(t)
	want := "value\nvalue\nread-only\n{\"/no/such/path\":\"" + data + "\"}\n"
	if out := r.output(t); exit.Code != 0 || out != want {
		t.Errorf("%s: exit %+v, output %q, want %q", kind, exit, out, want)
	}
	if _, err := os.Stat(filepath.Join(data, "y")); err != nil {
		t.Error("what the container wrote is not in the volume:", err)
	}
	if _, err := os.Stat("/run/config"); err == nil {
		t.Error("the machine's own /run was changed")
	}
}

func TestAClosedNodeStartsNothing(t *testing.T) {
	node := t.TempDir()
	if err := pods.Open(node); err != nil {
		t.Fatal(err)
	}
	dir := pods.ContainerDir(node, "c")
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := pods.StopAll(node, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := start(dir, None); err == nil || !strings.Contains(err.Error(), "being stopped") {
		t.Errorf("got %v", err)
	}
}
