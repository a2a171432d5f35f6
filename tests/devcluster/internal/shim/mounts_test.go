package shim

import (
	"reflect"
	"testing"

	"rerank.dev/devcluster/internal/pods"
)

func debian(folder string) (string, bool) {
	return map[string]string{"/run": "/run", "/var/run": "/run"}[folder], true
}
func separate(folder string) (string, bool) { return folder, true }
func without(folder string) (string, bool)  { return folder, folder == "/run" }

func TestPlan(t *testing.T) {
	const token = "/var/run/secrets/kubernetes.io/serviceaccount"
	for name, c := range map[string]struct {
		resolve func(string) (string, bool)
		paths   []string
		scratch []string
		want    []string
	}{
		"nothing to mount leaves /run alone":       {debian, nil, nil, nil},
		"/var/run is a link to /run":               {debian, []string{token, "/run/a"}, []string{"/run"}, []string{"/run/a", "/run/secrets/kubernetes.io/serviceaccount"}},
		"/var/run is a folder":                     {separate, []string{token}, []string{"/var/run"}, []string{token}},
		"there is no /var/run":                     {without, []string{token}, nil, []string{token}},
		"outside of /run":                          {debian, []string{"/tmp", "/models/"}, nil, []string{"/tmp", "/models"}},
		"/run itself and what only looks like it":  {debian, []string{"/run", "/running"}, nil, []string{"/run", "/running"}},
		"a mount inside another comes after it":    {debian, []string{"/run/a/b", "/run/a", "/tmp"}, []string{"/run"}, []string{"/tmp", "/run/a", "/run/a/b"}},
		"a path is cleaned before it is looked at": {debian, []string{"/run/../etc/x"}, nil, []string{"/etc/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			var mounts []pods.Mount
			for _, p := range c.paths {
				mounts = append(mounts, pods.Mount{Path: p, Source: "/volume"})
			}
			l := plan(mounts, c.resolve)
			var got []string
			for _, m := range l.binds {
				got = append(got, m.Path)
			}
			if !reflect.DeepEqual(got, c.want) || !reflect.DeepEqual(l.scratch, c.scratch) {
				t.Errorf("binds %v, scratch %v", got, l.scratch)
			}
		})
	}
}

func TestOnlyTheContainersOwnFileSystemsAreWrittenTo(t *testing.T) {
	l := layout{scratch: []string{"/run"}}
	for path, want := range map[string]bool{
		"/run/a": true, "/tmp/volume/a": true, "/tmp/other": false, "/models": false, "/dev/termination-log": false, "/running/a": false,
	} {
		if got := l.mayCreate(path, []string{"/tmp/volume"}); got != want {
			t.Errorf("mayCreate(%s) = %v", path, got)
		}
	}
}

func TestMountsVariable(t *testing.T) {
	env, err := withMounts([]string{"A=1"}, []pods.Mount{{Path: "/dev/termination-log", Source: "/state/log"}})
	if err != nil || !reflect.DeepEqual(env, []string{"A=1", `DEVCLUSTER_MOUNTS={"/dev/termination-log":"/state/log"}`}) {
		t.Errorf("got %v, %v", env, err)
	}
	if env, err := withMounts([]string{"A=1"}, nil); err != nil || len(env) != 1 {
		t.Errorf("with all mounts in place: %v, %v", env, err)
	}
}
