package cluster

import (
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func names(c Config) string {
	var all []string
	for _, n := range c.Nodes {
		all = append(all, n.Name)
	}
	return strings.Join(all, " ")
}

func TestPlan(t *testing.T) {
	two := &Config{Name: "dev", Block: 20, Nodes: []NodeSpec{{"gpu-0", 4}, {"cpu-0", 0}}}
	for name, c := range map[string]struct {
		old    *Config
		wanted Wanted
		nodes  string
		gpus   int
		err    string
	}{
		"as little as said":    {nil, Wanted{}, "gpu-0", 4, ""},
		"all said":             {nil, Wanted{Nodes: new(2), GPUs: new(1), CPUOnlyNodes: new(1)}, "gpu-0 gpu-1 cpu-0", 1, ""},
		"control plane alone":  {nil, Wanted{Nodes: new(0)}, "", 0, ""},
		"no GPUs on a node":    {nil, Wanted{GPUs: new(0)}, "gpu-0", 0, ""},
		"again, nothing said":  {two, Wanted{}, "gpu-0 cpu-0", 4, ""},
		"again, the same said": {two, Wanted{Nodes: new(1), GPUs: new(4), CPUOnlyNodes: new(1)}, "gpu-0 cpu-0", 4, ""},
		"nodes added behind":   {two, Wanted{Nodes: new(2), CPUOnlyNodes: new(2)}, "gpu-0 cpu-0 gpu-1 cpu-1", 4, ""},
		"GPUs cannot change":   {two, Wanted{GPUs: new(8)}, "", 0, "--gpus 8"},
		"nodes cannot go":      {two, Wanted{Nodes: new(0)}, "", 0, "--nodes 0"},
		"CPU nodes cannot go":  {two, Wanted{CPUOnlyNodes: new(0)}, "", 0, "--cpu-only-nodes 0"},
		"less than nothing":    {nil, Wanted{Nodes: new(-1)}, "", 0, "negative"},
		"more than addresses":  {nil, Wanted{Nodes: new(201)}, "", 0, "at most 200"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := plan("dev", c.old, c.wanted, map[string]string{"PATH": "/bin"})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil || names(got) != c.nodes {
				t.Fatalf("nodes %q, error %v", names(got), err)
			}
			if c.nodes != "" && got.Nodes[0].GPUs != c.gpus {
				t.Errorf("%d GPUs", got.Nodes[0].GPUs)
			}
			if c.old != nil && got.Block != c.old.Block {
				t.Errorf("block %d", got.Block)
			}
		})
	}
	if names(*two) != "gpu-0 cpu-0" {
		t.Error("the old configuration was changed")
	}
}

func TestBlockOrderVisitsEachBlockOnce(t *testing.T) {
	for _, wanted := range []int{firstBlock, 100, lastBlock} {
		order := blockOrder(wanted)
		if order[0] != wanted || len(order) != lastBlock-firstBlock+1 {
			t.Errorf("from %d: starts at %d, %d blocks", wanted, order[0], len(order))
		}
		slices.Sort(order)
		if order[0] != firstBlock || order[len(order)-1] != lastBlock || len(slices.Compact(order)) != lastBlock-firstBlock+1 {
			t.Errorf("from %d: not every block once", wanted)
		}
	}
}

func TestTwoClaimsAtOnceNeverMeet(t *testing.T) {
	first, release, err := claimBlock(homeBlock("/some/cluster"))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	second, releaseSecond, err := claimBlock(first)
	if err != nil {
		t.Fatal(err)
	}
	defer releaseSecond()
	if first == second {
		t.Errorf("both have block %d", first)
	}
}

func TestOpenDir(t *testing.T) {
	for name, ok := range map[string]bool{"dev": true, "a-1": true, "": false, "../dev": false, "Dev": false, "a/b": false, "-a": false, strings.Repeat("a", 33): false} {
		if _, err := OpenDir(t.TempDir(), name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCommandsOnAMissingClusterSayHowToMakeIt(t *testing.T) {
	dir, err := OpenDir(t.TempDir(), "dev")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Status(); err == nil || !strings.Contains(err.Error(), "devcluster up --name dev") {
		t.Errorf("got %v", err)
	}
	if err := dir.Down(t.Context(), false); err != nil {
		t.Errorf("down without a cluster: %v", err)
	}
}

func TestCertificatesFollowTheAddress(t *testing.T) {
	dir := Dir(t.TempDir())
	c := Config{Name: "dev", Block: 20, Nodes: []NodeSpec{{"gpu-0", 4}}}
	if err := dir.writePKI(c); err != nil {
		t.Fatal(err)
	}
	admin, err := loadCert(dir.pki("admin.crt"))
	if err != nil {
		t.Fatal(err)
	}
	node, err := loadCert(dir.pki("node-gpu-0.crt"))
	if err != nil || node.Subject.CommonName != "system:node:gpu-0" || !reflect.DeepEqual(node.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("node certificate: %v, %v", node.Subject, err)
	}
	c.Block = 21
	if err := dir.writePKI(c); err != nil {
		t.Fatal(err)
	}
	server, err := loadCert(dir.pki("server.crt"))
	if err != nil || !slices.ContainsFunc(server.IPAddresses, net.IPv4(127, 21, 0, 1).Equal) {
		t.Errorf("server certificate is for %v, %v", server.IPAddresses, err)
	}
	if again, err := loadCert(dir.pki("admin.crt")); err != nil || !again.Equal(admin) {
		t.Errorf("the administrator's certificate was made anew: %v", err)
	}
}

func TestNodeReady(t *testing.T) {
	started := time.Date(2026, 1, 1, 12, 0, 0, 700, time.UTC)
	ready := func(status corev1.ConditionStatus, beat time.Time) corev1.Node {
		return corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(beat)}}}}
	}
	tainted := ready(corev1.ConditionTrue, started)
	tainted.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}
	for name, c := range map[string]struct {
		node corev1.Node
		want bool
	}{
		"ready":                         {ready(corev1.ConditionTrue, started.Add(time.Second)), true},
		"in the second of its start":    {ready(corev1.ConditionTrue, started.Truncate(time.Second)), true},
		"ready only before its restart": {ready(corev1.ConditionTrue, started.Add(-time.Minute)), false},
		"not ready":                     {ready(corev1.ConditionFalse, started.Add(time.Second)), false},
		"unknown":                       {ready(corev1.ConditionUnknown, started.Add(time.Second)), false},
		"never heard of":                {corev1.Node{}, false},
		"pods would not be scheduled":   {tainted, false},
	} {
		if got, err := nodeReady(&c.node, started); got != c.want || (err == nil) != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
