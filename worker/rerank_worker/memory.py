"""How many bytes this process may take and takes, and how it gives freed ones back. Reads the machine; never guesses.

torch is looked at only where it has been imported already.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

SHARE = 0.8
"""Of the memory there is, for models: the rest is for batches, requests and the libraries."""


def cuda() -> Any | None:
    """torch.cuda where this process has initialised it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def default_limit() -> int:
    """Bytes that models may take together where nobody says: a share of the device's memory, or of the host's."""
    device = cuda()
    return int(SHARE * (device.mem_get_info()[1] if device is not None else host_bytes()))


def host_bytes() -> int:
    """The memory that this process may use: the machine's, or less where its cgroup says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        told = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(told)) if told.isdigit() else total


def give_back() -> None:
    """Return what was freed to the device and to the system, so that it shows in what the process takes."""
    gc.collect()
    if (device := cuda()) is not None:
        device.empty_cache()
    # glibc keeps freed blocks for later; another model's weights should find them free.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def taken() -> int:
    """Bytes that this process takes now: of the device where CUDA is in use, else of the host (resident)."""
    if (device := cuda()) is not None:
        return int(device.memory_allocated())
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
