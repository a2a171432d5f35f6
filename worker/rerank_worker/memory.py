"""How many bytes this process may take and takes, and how it gives freed ones back. Reads the machine; never guesses.

torch is looked at only where it has been imported already.
"""

import asyncio
import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

SHARE = 0.8
"""Of the memory there is, for models: the rest is for batches, requests and the libraries."""

TIDY_SECONDS = 15.0
"""Between two looks at what malloc has kept."""

TIDY_BYTES = 64 * 2**20
"""So much more than after the last time is worth giving back. What batches take comes to tens of MB and must be zeroed
again by the system afterwards: some 10 ms of work in every 15 s at worst."""


def cuda() -> Any | None:
    """torch.cuda where this process has initialised it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def default_limit() -> int:
    """Bytes that models may take together where nobody says: a share of the device's memory, or of the host's."""
    return int(SHARE * total())


def total() -> int:
    """The device's memory where CUDA is in use, else what this process may use of the host's."""
    device = cuda()
    return device.mem_get_info()[1] if device is not None else host_bytes()


def unused() -> int:
    """Bytes that this process could still take beside everything else: of the device where CUDA is in use, else of the
    host, whose other processes count, also those that share this one's cgroup (a container)."""
    device = cuda()
    if device is not None:
        return device.mem_get_info()[0] + device.memory_reserved() - device.memory_allocated()
    return unused_host()


def unused_host() -> int:
    """The host's alone, whatever the device has."""
    meminfo = _fields(Path("/proc/meminfo").read_text())
    available = meminfo["MemAvailable:"] * 1024
    try:
        held = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cached = _fields(Path("/sys/fs/cgroup/memory.stat").read_text())["inactive_file"]
    except (OSError, KeyError):
        return available
    # As the kubelet counts it: files that nobody has used lately go before anything is killed.
    return max(0, min(available, host_bytes() - (held - cached)))


def _fields(text: str) -> dict[str, int]:
    """First and second word of each line."""
    return {words[0]: int(words[1]) for line in text.splitlines() if len(words := line.split()) > 1}


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
    _trim()  # another model's weights should find it free


async def keep_tidy(pause: float = TIDY_SECONDS) -> None:
    """Return to the system, every now and then, what documents of a million characters have left in malloc's heaps,
    until cancelled. Between the small blocks that outlive them glibc keeps it for ever: an hour of mixed traffic took
    up to 0.2 GB more than its first minutes."""
    least = 0
    while True:
        await asyncio.sleep(pause)
        if resident() - least >= TIDY_BYTES:
            await asyncio.to_thread(_trim)
            least = resident()


def _trim() -> None:
    """Nothing where malloc is not glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def taken() -> int:
    """Bytes that this process takes now: of the device where CUDA is in use, else of the host (resident)."""
    if (device := cuda()) is not None:
        return int(device.memory_allocated())
    return resident()


def resident() -> int:
    """Bytes of the host that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
