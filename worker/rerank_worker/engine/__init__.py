"""The seam between scheduling and a device: an engine prepares a batch, computes it and collects logits.

Three steps, so that host work of one batch can overlap device work of another. Whatever implements this is called by
one thread only, the engine thread. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of one (query, document) pair, special tokens included, and their type ids."""

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)


class EngineOutOfMemory(Exception):
    """The batch did not fit; a smaller one may."""


class EngineUnsupported(Exception):
    """This engine cannot serve this model here; the message says why. Another engine may."""


class EngineLost(Exception):
    """The device is gone for good (its context is broken): only a new process helps."""


class Engine(Protocol):
    """Scores batches of pairs, one logit a pair, in the order given.

    Each step may raise EngineOutOfMemory or EngineLost; any other exception concerns that batch only. A pair's score
    does not depend on the pairs beside it, but for rounding.

    An engine may have ``asynchronous = True``: compute only queues work for the device, so the next batch is prepared
    and computed before this one is collected, which waits for its own batch alone.
    """

    name: str
    """What /v1/info and the tables of tune call it, such as torch-flat."""

    padded: bool
    """Whether a batch costs its longest pair times their number; False: only the tokens that are there."""

    def prepare(self, pairs: Sequence[Pair]) -> Any:
        """Host work: build the device's inputs."""
        ...

    def compute(self, prepared: Any) -> Any:
        """Device work: start the forward pass; need not wait for it."""
        ...

    def collect(self, output: Any) -> list[float]:
        """Wait for the output and bring it to the host as float32 logits."""
        ...

    def close(self) -> None:
        """Give the memory back. Nothing is called afterwards."""
        ...
