"""Which device, precision and number of threads: decisions as functions of what is there, and the probing of it.

"auto" never fails for want of a GPU; "cuda" never silently becomes the CPU.
"""

import logging
import math
import os
from pathlib import Path
from typing import Literal

from rerank_api.reranker import Device, Precision

from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure

log = logging.getLogger(__name__)

ChosenDevice = Literal["cuda", "cpu"]
ChosenPrecision = Literal["float32", "float16", "bfloat16", "int8", "float8"]


def choose_device(asked: Device, cuda_present: bool, cuda_error: str | None) -> tuple[ChosenDevice, str | None]:
    """The device and, where auto had to settle for less, why. ``cuda_error``: what CUDA said when it was tried."""
    if asked == "cpu":
        return "cpu", None
    if cuda_present and cuda_error is None:
        return "cuda", None
    if asked == "cuda":
        if cuda_present:
            raise EnvironmentFailure(f"spec.runtime.device is cuda, but CUDA does not start on this node: {cuda_error}")
        raise ConfigurationFailure(
            "spec.runtime.device is cuda, but the worker sees no CUDA device: ask for one in "
            "spec.runtime.resources.limits (nvidia.com/gpu: 1), or set spec.runtime.device to auto or cpu"
        )
    return "cpu", f"CUDA does not start: {cuda_error}" if cuda_present else "no CUDA device is visible"


def choose_precision(asked: Precision, device: ChosenDevice) -> ChosenPrecision:
    """float16 where a GPU makes it fast; float32 on the CPU, where half precision is slower on most processors."""
    if asked == "auto":
        return "float16" if device == "cuda" else "float32"
    return asked


def probe_device(asked: Device) -> ChosenDevice:
    """Try CUDA unless the CPU was asked for; warn when auto falls back."""
    import torch

    present, error = False, None
    if asked != "cpu":
        present = torch.cuda.is_available()
        if present:
            try:
                torch.zeros(1, device="cuda").item()
            except (RuntimeError, AssertionError) as failure:
                error = str(failure).splitlines()[0]
    device, why = choose_device(asked, present, error)
    if why is not None:
        log.warning("spec.runtime.device is auto and %s: serving on the CPU", why)
    return device


def cores(cpu_max: str | None, allowed: int, told: str | None = None) -> int:
    """Whole cores this process may use: its affinity (``allowed``) under the cgroup's quota (text of cpu.max).

    ``told``: OMP_NUM_THREADS, by which people say the same to every numerical library; it can only lower the number.
    """
    if told is not None and told.isdecimal() and int(told) > 0:
        allowed = min(allowed, int(told))
    quota, _, period = (cpu_max or "max").partition(" ")
    if quota.strip() == "max" or not period:
        return max(1, allowed)
    return max(1, min(allowed, math.ceil(int(quota) / int(period))))


def available_cores() -> int:
    """``cores`` of this process, read from the machine."""
    try:
        cpu_max = Path("/sys/fs/cgroup/cpu.max").read_text()
    except OSError:
        cpu_max = None
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores(cpu_max, allowed, os.environ.get("OMP_NUM_THREADS"))
