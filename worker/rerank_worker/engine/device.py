"""Which device, precision and number of threads: decisions as functions of what is there, and the probing of it.

"auto" never fails for want of a GPU; "cuda" never silently becomes the CPU.
"""

import logging
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rerank_api.reranker import Device, Precision

from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure, first_line

log = logging.getLogger(__name__)

ChosenDevice = Literal["cuda", "cpu"]
ChosenPrecision = Literal["float32", "float16", "bfloat16", "int8", "float8"]

FLOAT8_CAPABILITY = (8, 9)
"""CUDA compute capability from which on tensor cores multiply float8 (Ada; Hopper is 9.0)."""

CAPTURING = threading.Lock()
"""Held while a CUDA graph is captured, and by who else does what a capture does not bear: another capture (torch has
one at a time in a process; a model may load, and capture, while another serves), and compiling, which waits for the
whole device."""

_FAST_ON_CPU: dict[ChosenPrecision, tuple[str, ...]] = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""Names in torch.cpu.get_capabilities(); with none of them a precision is slower than float32. (With avx512_bf16
and oneDNN's packed weights, twice float32's rate of multiplication was measured.)"""


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


def choose_precision(
    asked: Precision, device: ChosenDevice, capability: tuple[int, int] | None = None
) -> ChosenPrecision:
    """What matrices are multiplied in. ``capability``: CUDA's compute capability; None: not known, or no CUDA.

    auto: float16 where a GPU makes it fast; float32 on the CPU, where half precision is slower on most processors.
    Raises ConfigurationFailure where no engine has the precision on the device.
    """
    if asked == "auto":
        return "float16" if device == "cuda" else "float32"
    if asked == "float8" and device == "cpu":
        raise ConfigurationFailure(
            "spec.runtime.precision is float8, which no CPU multiplies: set it to int8 for speed or to auto, or ask "
            "for a GPU of compute capability 8.9 or more (L4, L40S, H100) with spec.runtime.device cuda"
        )
    if asked == "float8" and capability is not None and capability < FLOAT8_CAPABILITY:
        raise ConfigurationFailure(
            f"spec.runtime.precision is float8, but this GPU has compute capability {_dotted(capability)} where it "
            f"takes {_dotted(FLOAT8_CAPABILITY)} (L4, L40S, H100): set it to float16, or choose another node"
        )
    if asked == "int8" and device == "cuda":
        raise ConfigurationFailure(
            "spec.runtime.precision is int8, which the worker computes on the CPU only: set it to float16 or, on "
            f"a GPU of compute capability {_dotted(FLOAT8_CAPABILITY)} or more, to float8; or set "
            "spec.runtime.device to cpu"
        )
    return asked


def slow_precision(
    precision: ChosenPrecision,
    device: ChosenDevice,
    capability: tuple[int, int] | None,
    instructions: Mapping[str, Any],
) -> str | None:
    """Why ``precision`` is slower here than float32 would be, a sentence; None: it is not, as far as is known.

    ``instructions``: what torch.cpu.get_capabilities() says.
    """
    if device == "cuda":
        if precision == "bfloat16" and capability is not None and capability < (8, 0):
            return (
                f"spec.runtime.precision is bfloat16, which this GPU (compute capability {_dotted(capability)}) only "
                "emulates: float16 is several times as fast here"
            )
        return None
    needed = _FAST_ON_CPU.get(precision, ())
    if not needed or any(instructions.get(name) for name in needed):
        return None
    return (
        f"spec.runtime.precision is {precision}, but this processor has no instructions for it ({', '.join(needed)}): "
        "float32 is faster here"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


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
                error = first_line(failure)
    device, why = choose_device(asked, present, error)
    if why is not None:
        log.warning("spec.runtime.device is auto and %s: serving on the CPU", why)
    return device


def probe_precision(asked: Precision, device: ChosenDevice) -> ChosenPrecision:
    """``choose_precision`` for this machine; warns when the precision that was asked for is slow here."""
    import torch

    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    chosen = choose_precision(asked, device, capability)
    why = slow_precision(chosen, device, capability, torch.cpu.get_capabilities())
    if why is not None:
        log.warning(why)
    return chosen


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
