"""Settings of the whole process that must be made before torch is imported: how its threads wait, what malloc keeps.

Never overrides what the user has set in the environment; never imports torch.
"""

import ctypes
import os
from collections.abc import Mapping, MutableMapping

SPINS = 5_000
"""Turns that a thread of libgomp waits before it sleeps: about a tenth of a millisecond, longer than most gaps between
the parallel regions of a forward pass. Sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs a wake-up in each of hundreds
of regions a batch; spinning for longer takes the cores from whoever shares them (tokenizer, server, other pods).
Measured on 2 cores, MiniLM-L6 shape, thousands of tokens/s alone in float32 and int8, and pairs a CPU second in float32
beside one busy process: sleeping at once 6.9, 10.0, 48; 2,000 turns 7.3, 11.9, 39; 5,000 turns 7.7, 12.6, 39; 20,000
turns 7.7, 12.8, 22 to 29."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""malloc.h of glibc."""

MMAP_BYTES = (1 << 28, 1 << 25)
"""Allocations from here on come from the system and return to it; the first that glibc takes (older ones: 32 MiB)."""

TRIM_BYTES = 1 << 28
"""Free memory at the end of a heap from which on glibc returns it to the system by itself."""

ARENAS = 2
"""Heaps of glibc that all threads share. By default each thread has its own, up to eight a core, and each keeps what
its largest document took: 72 documents of up to a million characters, tokenized in 6 threads, left 1.0 GB behind
instead of 0.35, and were no faster for it. In a soak the worker's memory rose by 0.2 GB when requests overlapped."""

PRIMITIVES = 128
"""Matrix products that oneDNN, and torch's own cache before it, keep made up for a number of tokens; batches have any
number. By default each keeps 1,024: measured on the MiniLM shape, 0.5 GB after some 200 sizes of batches instead of
0.06, for no gain in CPU time."""


def prepare() -> None:
    """Make the settings, once, before torch is imported for the first time."""
    wait_shortly(os.environ)
    keep_few_primitives(os.environ)
    keep_freed_memory()
    share_heaps(os.environ)


def wait_shortly(environment: MutableMapping[str, str]) -> None:
    """Have libgomp's threads spin ``SPINS`` turns, unless the environment says how they wait. Read when libgomp is
    loaded; other OpenMP libraries ignore it."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))


def keep_few_primitives(environment: MutableMapping[str, str]) -> None:
    """Have at most ``PRIMITIVES`` kept, unless the environment says how many (the names are theirs: oneDNN's manual,
    "Primitive Cache"; lru_cache.hpp of ideep)."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        environment.setdefault(name, str(PRIMITIVES))


def keep_freed_memory() -> bool:
    """Have malloc keep what a batch frees for the next one; whether it does (not on musl or macOS).

    By default glibc returns activations to the system after each layer and has every page zeroed again in the next:
    measured, thousands of page faults a batch instead of none. The price is that the largest batch's activations stay
    resident (tens of MB for MiniLM at 2,048 tokens), as they would be needed again; ``memory.give_back`` returns them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    large = any(mallopt(_M_MMAP_THRESHOLD, size) for size in MMAP_BYTES)
    return bool(mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)) and large


def share_heaps(environment: Mapping[str, str]) -> bool:
    """Have malloc use ``ARENAS`` heaps, unless the environment says how many; whether it does (not on musl, macOS)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "MALLOC_ARENA_MAX" in environment:
        return False
    return bool(mallopt(_M_ARENA_MAX, ARENAS))
