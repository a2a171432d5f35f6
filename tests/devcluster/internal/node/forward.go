package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const dialLimit = 10 * time.Second

// forwards connects port-forwards with the pods' own addresses, where containers listen here: nothing listens at the pod's localhost.
type forwards struct{ store *store }

// serveStreams gives what the kubelet hands its clients' port-forwards to, on a port of this machine; a URL of it holds a token that is
// good for one connection.
func serveStreams(s *store) (streaming.Server, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	config := streaming.DefaultConfig
	config.Addr = listener.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: config.Addr, Path: "/"}
	server, err := streaming.NewServer(config, forwards{s})
	if err != nil {
		return nil, err
	}
	go func() { fmt.Fprintln(os.Stderr, "streams:", http.Serve(listener, server)) }()
	return server, nil
}

func (r *runtime) PortForward(_ context.Context, request *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return r.streams.GetPortForward(request)
}

func (f forwards) PortForward(ctx context.Context, id string, port int32, client io.ReadWriteCloser) error {
	sandbox, ok := f.store.sandbox(id)
	if !ok || sandbox.Stopped {
		return notFound("pod sandbox", id)
	}
	dialer := net.Dialer{Timeout: dialLimit}
	pod, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(sandbox.IP, fmt.Sprint(port)))
	if err != nil {
		return err
	}
	defer pod.Close()
	go func() {
		io.Copy(pod, client)
		pod.(*net.TCPConn).CloseWrite() // the client has said all; what the pod answers is still read
	}()
	_, err = io.Copy(client, pod)
	return err
}

func (forwards) Exec(context.Context, string, []string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	return cannot("exec")
}

func (forwards) Attach(context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	return cannot("attach")
}
