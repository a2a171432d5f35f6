// Package shim runs one container: a process in its own session, with its volumes at their mount paths where the machine allows a private
// mount namespace, its output in the kubelet's log format, and its exit status in a file.
//
// It outlives the kubelet. It must never change the machine's own mounts or create anything outside of its private ones.
package shim

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"

	"rerank.dev/devcluster/internal/pods"
)

// Isolation says which kind of mount namespace the machine allows.
type Isolation string

const (
	Private     Isolation = "private" // for root
	PrivateUser Isolation = "user"    // inside a user namespace of its own, for everybody else
	None        Isolation = "none"    // the container gets DEVCLUSTER_MOUNTS instead
)

// MountsVariable tells a container where on the host its mounts are that could not be put in place.
const MountsVariable = "DEVCLUSTER_MOUNTS"

// scratchRoots get an empty file system of the container's own, in which mount paths can be made. Everything else of the machine's file
// system is only visible, so a mount path there works if it exists.
var scratchRoots = []string{"/run", "/var/run"}

// layout is what to do inside a new mount namespace, in order.
type layout struct {
	scratch []string     // folders that get an empty file system
	binds   []pods.Mount // shorter paths first; each Path is free of the symbolic links of a scratch root
}

// plan arranges the mounts. resolve follows the symbolic links of a scratch root, and says false where there is no such folder.
func plan(mounts []pods.Mount, resolve func(string) (string, bool)) layout {
	var l layout
	for _, m := range mounts {
		m.Path = filepath.Clean(m.Path)
		for _, root := range scratchRoots {
			real, exists := resolve(root)
			if !exists || !inside(m.Path, root) {
				continue
			}
			m.Path = real + strings.TrimPrefix(m.Path, root)
			if !slices.Contains(l.scratch, real) {
				l.scratch = append(l.scratch, real)
			}
			break
		}
		l.binds = append(l.binds, m)
	}
	slices.Sort(l.scratch)
	slices.SortStableFunc(l.binds, func(a, b pods.Mount) int {
		return cmp.Compare(strings.Count(a.Path, "/"), strings.Count(b.Path, "/"))
	})
	return l
}

func inside(path, folder string) bool { return strings.HasPrefix(path, folder+"/") }

// mayCreate says whether a mount path that does not exist may be made: only in a file system that is the container's own.
func (l layout) mayCreate(path string, bound []string) bool {
	return slices.ContainsFunc(append(slices.Clone(l.scratch), bound...), func(folder string) bool { return inside(path, folder) })
}
