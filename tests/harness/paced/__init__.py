"""What stands in for a GPU where replicas share the machine's cores: a worker that takes a stated device's time.

Figures from it say so. This module names the profile and how a Pod gets such a worker; ``server`` is the worker.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

ENV_PROFILE = "RERANK_PACED"
"""JSON of a Profile, in the environment of the worker container."""

BIN = Path(__file__).parent / "bin"
"""Holds a program of the worker's name, to be found before it on a container's PATH (local cluster only)."""


class Profile(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The device that is stood in for. Defaults: a small GPU with a small cross-encoder."""

    tokens_per_second: float = 20_000.0
    """What each batch takes beside ``batch_seconds``; 0: no time at all."""
    batch_seconds: float = 0.002
    """What each batch takes whatever is in it."""
    max_batch_tokens: int = 1_024
    start_seconds: float = 0.0
    """From the process's start until its libraries and its device are ready."""
    load_seconds: float = 0.0
    """Loading one model."""

    @property
    def capacity(self) -> float:
        """Tokens a second with full batches; infinity where nothing takes time."""
        seconds = self.batch_seconds
        if self.tokens_per_second > 0:
            seconds += self.max_batch_tokens / self.tokens_per_second
        return self.max_batch_tokens / seconds if seconds > 0 else float("inf")

    def seconds(self, tokens: int) -> float:
        """Of a batch of so many tokens."""
        return self.batch_seconds + (tokens / self.tokens_per_second if self.tokens_per_second > 0 else 0.0)


def environment(profile: Profile, venv_bin: Path) -> dict[str, str]:
    """What makes ``rerank-worker`` a paced worker; ``venv_bin`` holds the Python that runs it."""
    path = os.pathsep.join([str(BIN), str(venv_bin), "/usr/local/bin", "/usr/bin", "/bin"])
    return {"PATH": path, ENV_PROFILE: msgspec.json.encode(profile).decode()}


def overlay(profile: Profile, venv_bin: Path) -> dict[str, Any]:
    """The same as a podTemplate of a Reranker or a WarmPool on the local cluster."""
    variables = environment(profile, venv_bin) | {"OMP_NUM_THREADS": "1"}
    env = [{"name": name, "value": value} for name, value in variables.items()]
    return {"spec": {"containers": [{"name": "worker", "env": env}]}}
