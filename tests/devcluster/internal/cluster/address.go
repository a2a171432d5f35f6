package cluster

import (
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	firstBlock = 16
	lastBlock  = 254
)

// blockOrder is the order in which blocks are tried: the one wanted first, the others after it, each once.
func blockOrder(wanted int) []int {
	n := lastBlock - firstBlock + 1
	order := make([]int, 0, n)
	for i := range n {
		order = append(order, firstBlock+(wanted-firstBlock+i)%n)
	}
	return order
}

// homeBlock spreads clusters over the blocks, so that one that is stopped and started again mostly finds its addresses free.
func homeBlock(dir Dir) int {
	h := fnv.New32a()
	h.Write([]byte(dir))
	return firstBlock + int(h.Sum32()%(lastBlock-firstBlock+1))
}

// claimBlock finds 127.N.0.0/16 with all ports of the control plane free and keeps others from choosing it until it is released.
// Call release once the API server listens.
func claimBlock(wanted int) (block int, release func(), err error) {
	for _, block := range blockOrder(wanted) {
		address := fmt.Sprintf("127.%d.0.1", block)
		claim, err := listen(address, claimPort)
		if err != nil {
			continue
		}
		if portsFree(address, apiPort, etcdPort, etcdPeerPort, controllerPort, schedulerPort, firstKubeletPort) {
			return block, func() { claim.Close() }, nil
		}
		claim.Close()
	}
	return 0, nil, fmt.Errorf("no free loopback addresses in 127.%d.0.0 to 127.%d.255.255: stop another cluster first", firstBlock, lastBlock)
}

func listen(address string, port int) (net.Listener, error) {
	return net.Listen("tcp4", fmt.Sprintf("%s:%d", address, port))
}

func portsFree(address string, ports ...int) bool {
	for _, port := range ports {
		l, err := listen(address, port)
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// lock keeps two commands from changing the same cluster at once. It waits a bounded time for the other to end.
func (d Dir) lock(limit time.Duration) (unlock func(), err error) {
	file := d.lockFile()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(limit)
	for {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && isStill(f, file) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another devcluster command has been working on cluster %q for %v: wait for it to end", filepath.Base(string(d)), limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// isStill says whether the open file is the one at the path: `down` removes it, and a lock on a removed file keeps nobody out.
func isStill(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}
