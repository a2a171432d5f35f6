package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rerank.dev/devcluster/internal/pods"
)

// Check tries, in the namespace it was started in, what a container will need.
func Check() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	if err := os.Mkdir("/run/check", 0o755); err != nil {
		return err
	}
	return unix.Mount("/tmp", "/run/check", "", unix.MS_BIND|unix.MS_REC, "")
}

// Enter becomes the container's command: it puts the mounts in place and replaces this process. It returns only if that fails.
func Enter(dir pods.Dir, isolation Isolation) error {
	runtime.LockOSThread() // capabilities belong to a thread
	c, err := dir.Container()
	if err != nil {
		return err
	}
	unbound := c.Mounts
	if isolation != None {
		if unbound, err = mountAll(c.Mounts); err != nil {
			return err
		}
		// The capability that the mounts needed must not reach the container.
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	env, err := withMounts(c.Env, unbound)
	if err != nil {
		return err
	}
	if err := os.Chdir(or(c.WorkingDir, "/")); err != nil {
		return fmt.Errorf("workingDir: %w", err)
	}
	program, err := find(c.Argv[0], env)
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", program, syscall.Exec(program, c.Argv, env))
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// withMounts adds the variable that names the mounts not in place.
func withMounts(env []string, unbound []pods.Mount) ([]string, error) {
	if len(unbound) == 0 {
		return env, nil
	}
	paths := map[string]string{}
	for _, m := range unbound {
		paths[m.Path] = m.Source
	}
	b, err := json.Marshal(paths)
	return append(env, MountsVariable+"="+string(b)), err
}

// find looks a command up on the PATH of the container.
func find(name string, env []string) (string, error) {
	path := ""
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value
		}
	}
	if err := os.Setenv("PATH", path); err != nil {
		return "", err
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("command %q: %w (devcluster runs no images: commands are those of this machine, see `devcluster up --path`)", name, err)
	}
	return program, nil
}

// mountAll puts the mounts in place and returns those that could not be, as they were asked for.
func mountAll(mounts []pods.Mount) ([]pods.Mount, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make the mounts private: %w", err)
	}
	l := plan(mounts, func(folder string) (string, bool) {
		real, err := filepath.EvalSymlinks(folder)
		return real, err == nil
	})
	// All sources are opened first, since a mount may hide the folder in which another's source lies (/tmp, for one).
	sources := make([]*os.File, len(l.binds))
	for i, m := range l.binds {
		fd, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("volume for %s: open %s: %w", m.Path, m.Source, err)
		}
		sources[i] = os.NewFile(uintptr(fd), m.Source)
		defer sources[i].Close()
	}
	for _, folder := range l.scratch {
		if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return nil, fmt.Errorf("mount a tmpfs on %s: %w", folder, err)
		}
	}
	var unbound []pods.Mount
	var bound []string
	for i, m := range l.binds {
		info, err := sources[i].Stat()
		if err != nil {
			return nil, err
		}
		if err := makeTarget(m.Path, info.IsDir(), l.mayCreate(m.Path, bound)); err != nil {
			unbound = append(unbound, m)
			continue
		}
		if err := bind(fmt.Sprintf("/proc/self/fd/%d", sources[i].Fd()), m); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, err)
		}
		bound = append(bound, m.Path)
	}
	return unbound, nil
}

// makeTarget makes sure that something can be mounted at path.
func makeTarget(path string, folder, create bool) error {
	info, err := os.Stat(path)
	if err == nil {
		if info.IsDir() != folder {
			return fmt.Errorf("%s: one of the volume and the mount path is a folder and the other is not", path)
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) || !create {
		return err
	}
	if folder {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func bind(source string, m pods.Mount) error {
	if err := unix.Mount(source, m.Path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil || !m.ReadOnly {
		return err
	}
	var info unix.Statfs_t
	if err := unix.Statfs(m.Path, &info); err != nil {
		return err
	}
	// In a user namespace the restrictions of the source may not be lifted, so they are repeated.
	keep := uintptr(info.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME)
	return unix.Mount("", m.Path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|keep, "")
}

// Complaint opens the file on which the outer stage hears of a failure. A successful exec closes it.
func Complaint(fd int) (*os.File, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), "complaint"), nil
}
