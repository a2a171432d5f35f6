package node

import (
	"context"
	"os"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// anonymousUser stands for the image's user when the node runs as root, or the kubelet would refuse every pod with runAsNonRoot.
const anonymousUser = 65532

// images claims to have every image: none is ever pulled or run.
type images struct{ dir string }

func (images) ListImages(context.Context, *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	return nil, nil
}

func (images) ImageStatus(_ context.Context, spec *runtimeapi.ImageSpec, _ bool) (*runtimeapi.ImageStatusResponse, error) {
	user := int64(os.Getuid())
	if user == 0 {
		user = anonymousUser
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{
		Id: spec.GetImage(), RepoTags: []string{spec.GetImage()}, Size: 1, Uid: &runtimeapi.Int64Value{Value: user}, Spec: spec,
	}}, nil
}

func (images) PullImage(_ context.Context, spec *runtimeapi.ImageSpec, _ *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	return spec.GetImage(), nil
}

func (images) RemoveImage(context.Context, *runtimeapi.ImageSpec) error { return nil }

func (i images) ImageFsInfo(context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	usage := []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: i.dir}, UsedBytes: &runtimeapi.UInt64Value{Value: 1}, InodesUsed: &runtimeapi.UInt64Value{Value: 1}}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: usage, ContainerFilesystems: usage}, nil
}

func (images) Close(context.Context) error { return nil }
