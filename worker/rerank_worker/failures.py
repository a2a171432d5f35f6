"""Why a worker could not start: one sentence for people and an exit code for programs.

The operator shows the sentence in the Reranker's conditions, so it names the spec field and the remedy. Never put a
query or a document into it.
"""

import errno
import sys
from pathlib import Path

_MACHINE = frozenset(
    {
        errno.EIO,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ESTALE,
        errno.ENODEV,
        errno.ENXIO,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    }
)

MAX_SENTENCE = 1000
"""Characters; the kubelet cuts termination messages at 4096 bytes."""


def one_line(text: str) -> str:
    """What a client has sent, or a model's files say, begins no line of its own and moves no terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


class StartupFailure(Exception):
    """The worker cannot serve. Use one of the two kinds below."""

    exit_code: int

    @property
    def sentence(self) -> str:
        text = one_line(" ".join(str(self).split()))
        return text if len(text) <= MAX_SENTENCE else text[: MAX_SENTENCE - 1] + "…"


class ConfigurationFailure(StartupFailure):
    """The configuration or the model is wrong: trying again will not help."""

    exit_code = 64


class EnvironmentFailure(StartupFailure):
    """Memory, device, network or port: it may pass."""

    exit_code = 71


def first_line(error: BaseException) -> str:
    """Of its text, up to 200 characters; its class where it has no text, as MemoryError has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def out_of_memory(where: str, detail: str) -> EnvironmentFailure:
    """The failure for memory that ran out while ``where`` (a phrase such as "loading the model")."""
    return EnvironmentFailure(
        f"out of memory while {where}: raise spec.runtime.resources limits, choose a smaller model, "
        f"or set spec.runtime.precision to float16 ({detail})"
    )


def no_number(precision: str | None) -> str:
    """What to do about a score that is no finite number, by the precision that computed it (None: not known)."""
    if precision == "float16":
        return "set spec.runtime.precision to bfloat16 or float32, whose numbers reach further than float16's"
    if precision in ("float32", "bfloat16"):
        return f"its numbers outgrow {precision}, so its weights are damaged: copy the model again, or use another one"
    return "set spec.runtime.precision to float32; if it is none then either, the model's weights are damaged"


def is_of_the_machine(error: BaseException | None) -> bool:
    """Whether a disk, a volume or the network failed, and not what was read: ``error`` or what it came from.

    Libraries raise OSError without a number too, for files that they do not like.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            return True
        error = error.__cause__ or error.__context__
    return False


def unexpected(error: BaseException) -> EnvironmentFailure:
    """The failure for an error that no code foresaw; its words are kept, since they are all there is."""
    return EnvironmentFailure(f"the worker could not start: {type(error).__name__}: {error}")


def report(failure: StartupFailure, termination_log: str | None) -> None:
    """Write the sentence to ``termination_log`` (a path; None: nowhere) and as the last line of stderr."""
    if termination_log:
        try:
            Path(termination_log).write_text(failure.sentence, encoding="utf-8")
        except OSError as error:
            print(f"cannot write {termination_log}: {error}", file=sys.stderr)
    print(failure.sentence, file=sys.stderr, flush=True)
