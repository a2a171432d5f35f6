"""What ``tune`` recommends of what ``trials`` measured, and why. Pure."""

from collections.abc import Sequence

from rerank_api.reranker import Backend
from rerank_api.worker_config import WorkerConfig

from rerank_worker.commands.trials import Contender, Trial
from rerank_worker.engine import capacity
from rerank_worker.loading.checkpoint import Checkpoint

BACKENDS: dict[str, Backend] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""spec.runtime.backend of engines that are not torch's."""

REDUCED_GAIN = 1.1
"""A precision below float32, or an engine that needs an export, must be so many times as fast to be worth it."""

QUALITY_FLOOR = 0.99
"""Least nDCG@10 of a reduced precision; spec.runtime.qualityFloor's default."""

LARGEST_DIFFERENCE = 0.05
"""Of a final score to float32's, where the quality was not measured."""


def acceptable(contender: Contender) -> bool:
    """Whether its scores are near enough to float32's."""
    if contender.precision == "float32":
        return True
    if contender.quality is not None:
        return contender.quality >= QUALITY_FLOOR
    return contender.difference is not None and contender.difference <= LARGEST_DIFFERENCE


def recommend(measured: Sequence[Trial]) -> tuple[Trial, str] | None:
    """The trial whose settings to use, and why; None where no token budget was measured.

    The plain choice is torch in float32; anything else must be faster by more than it costs to have. Of budgets that
    are equally fast the smallest is taken, which keeps others waiting for the shortest time.
    """
    usable = [trial for trial in measured if trial.way.unit == "tokens" and acceptable(trial.contender)]
    if not usable:
        return None

    def best(of: Sequence[Trial]) -> Trial:
        fastest = max(trial.pairs_per_second for trial in of)
        near = [trial for trial in of if trial.pairs_per_second >= fastest * (1 - capacity.SAME_SPEED)]
        return min(near, key=lambda trial: (trial.way.size, -trial.pairs_per_second))

    def plain(trial: Trial) -> bool:
        return trial.contender.precision == "float32" and trial.contender.name not in BACKENDS

    chosen = best(usable)
    plainest = [trial for trial in usable if plain(trial)]
    if not plainest:
        return chosen, f"{name_of(chosen)} is the fastest that was measured ({_speed(chosen)})"
    usual = best(plainest)
    gain = chosen.pairs_per_second / usual.pairs_per_second
    if plain(chosen):
        return chosen, f"{name_of(chosen)} is the fastest ({_speed(chosen)}) of all whose scores are near float32's"
    if gain < REDUCED_GAIN:
        return usual, (
            f"{name_of(usual)} ({_speed(usual)}) is as fast as {name_of(chosen)} but for {max(gain - 1, 0):.0%}, which "
            "is not worth its cost in scores or in starting"
        )
    return chosen, (
        f"{name_of(chosen)} ({_speed(chosen)}) is {gain:.2f} times as fast as {name_of(usual)} ({_speed(usual)})"
        + _price(chosen.contender)
    )


def _price(contender: Contender) -> str:
    if contender.precision == "float32":
        return ", with the same scores"
    if contender.quality is not None:
        return f", with an nDCG@10 of {contender.quality:.4f} where float32's ranking is 1"
    return f", with scores at most {contender.difference:.4f} from float32's"


def best_batch_size(measured: Sequence[Trial]) -> Trial | None:
    """The fastest of the batch sizes counted in pairs."""
    counted = [trial for trial in measured if trial.way.unit == "pairs" and acceptable(trial.contender)]
    return max(counted, key=lambda trial: trial.pairs_per_second, default=None)


def settings(trial: Trial, config: WorkerConfig, checkpoint: Checkpoint) -> str:
    """The spec of a Reranker that serves as ``trial`` did: YAML."""
    lines = ["spec:"]
    if config.max_length is not None:
        lines += ["  model:", f"    maxLength: {config.max_length}"]
    lines += [
        "  runtime:",
        f"    device: {checkpoint.device}",
        f"    backend: {BACKENDS.get(trial.contender.name, 'torch')}",
        f"    precision: {trial.contender.precision}",
        "  batching:",
        f"    maxBatchTokens: {trial.way.size}",
        f"    lengthBucket: {checkpoint.length_bucket}",
    ]
    return "\n".join(lines)


def name_of(trial: Trial) -> str:
    return f"{trial.contender.name} in {trial.contender.precision} with batches of {trial.way}"


def _speed(trial: Trial) -> str:
    return f"{trial.pairs_per_second:.1f} pairs/s"
