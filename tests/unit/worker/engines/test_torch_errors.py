"""Which of torch's errors a smaller batch mends, and which only a new process does."""

import pytest
import torch
from rerank_worker.engine import EngineLost, EngineOutOfMemory
from rerank_worker.engine.torch_errors import TorchErrors


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_want_of_memory(error: Exception) -> None:
    with pytest.raises(EngineOutOfMemory), TorchErrors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    ],
)
def test_a_lost_device(error: Exception) -> None:
    with pytest.raises(EngineLost), TorchErrors():
        raise error


@pytest.mark.parametrize("error", [ValueError("memory"), IndexError("index out of range in self")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), TorchErrors():
        raise error
