"""What NVML tells of the GPUs that this process sees, asked when it is scraped.

Nothing here may fail a scrape or make a number up: what NVML does not answer is left out; a driver that hangs keeps the
scrape that asked, and no other. torch is looked at only where
it has been imported already, and CUDA never initialised.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from rerank_worker import memory

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Gpu:
    """``index``: as CUDA counts for this process; ``utilization``: share of the last moments (of NVML's choice) in
    which a kernel ran, of any process; bytes are of all processes. None: NVML does not say."""

    index: int
    utilization: float | None
    used_bytes: int | None
    total_bytes: int | None


def visible(told: str | None, uuids: Sequence[str]) -> list[str]:
    """Those of ``uuids`` (of all GPUs, by number) that CUDA shows a process, in its order.

    ``told``: CUDA_VISIBLE_DEVICES: numbers, or UUIDs or their beginnings; the first that names no GPU ends the list.
    """
    if told is None:
        return list(uuids)
    found: list[str] = []
    for part in map(str.strip, told.split(",")):
        if part.isdecimal():
            named = list(uuids[int(part) : int(part) + 1])
        else:
            named = [uuid for uuid in uuids if part and uuid.startswith(part)]
        if len(named) != 1:
            break
        found += named
    return found


class Gpus:
    """NVML is initialised at the first ``read``, once; where its library is missing it is never asked again.
    ``patience``: seconds that a ``read`` waits for another one to end."""

    def __init__(self, patience: float = 1.0) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._absent = False
        self._initialised = False

    def read(self) -> list[Gpu]:
        """Every GPU that this process sees and NVML knows; empty where there is none, and while another is stuck."""
        if not self._lock.acquire(timeout=self._patience):
            return []
        try:
            return list(self._read()) if self._begun() else []
        finally:
            self._lock.release()

    def _begun(self) -> bool:
        if not self._initialised and not self._absent:
            try:
                pynvml.nvmlInit()
                self._initialised = True
            except pynvml.NVMLError as error:
                # A driver that does not answer may do so at the next scrape; a library does not appear.
                self._absent = getattr(error, "value", None) == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
        return self._initialised

    def _read(self) -> Iterator[Gpu]:
        for index, uuid in enumerate(_uuids()):
            handle = _asked(pynvml.nvmlDeviceGetHandleByUUID, uuid)
            if handle is None:
                continue
            rates = _asked(pynvml.nvmlDeviceGetUtilizationRates, handle)
            held = _asked(pynvml.nvmlDeviceGetMemoryInfo, handle)
            yield Gpu(
                index,
                None if rates is None else rates.gpu / 100,
                None if held is None else held.used,
                None if held is None else held.total,
            )


def _uuids() -> list[str]:
    """Of the GPUs that this process sees, as CUDA counts them; where CUDA is not in use, as it would by the environment
    (and by NVML's order, which is CUDA's where all GPUs are of one kind)."""
    device: Any = memory.cuda()
    if device is not None:
        # A part of a GPU (MIG) has a UUID of its own, whose name begins otherwise.
        known = [str(device.get_device_properties(number).uuid) for number in range(device.device_count())]
        return [_prefixed(uuid) for uuid in known]
    count = _asked(pynvml.nvmlDeviceGetCount) or 0
    handles = [_asked(pynvml.nvmlDeviceGetHandleByIndex, number) for number in range(count)]
    uuids = [None if handle is None else _asked(pynvml.nvmlDeviceGetUUID, handle) for handle in handles]
    return visible(os.environ.get("CUDA_VISIBLE_DEVICES"), [uuid or "" for uuid in uuids])


def _prefixed(uuid: str) -> str:
    found = (name for name in (f"GPU-{uuid}", f"MIG-{uuid}") if _asked(pynvml.nvmlDeviceGetHandleByUUID, name))
    return next(found, uuid)


def _asked(question: Callable[..., Found], *arguments: Any) -> Found | None:
    """NVML's answer; None where it has none."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None
