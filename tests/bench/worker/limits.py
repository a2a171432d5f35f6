"""What this machine could do at best, in process, without HTTP, padding or tokenizing: JSON on standard output.

    limits.py --folder FOLDER --onnx FOLDER --threads N --length TOKENS [--batches 4,8,16] [--seconds S]

Equal-length batches of pairs of the workload's mean length (nothing is padded, so no server can do better with the
same kernels), with torch and with ONNX Runtime, each at its best batch size; and the plain float32 matmul rate.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--batches", default="4,8,16")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batches = [int(size) for size in options.batches.split(",")]
    steps = {
        "torch": torch_step(options.folder, options.length),
        "onnxruntime": onnx_step(options.onnx, options.length, options.threads),
    }
    found: dict[str, object] = {"length": options.length, "matmul_gflops": round(matmul_gflops(options.seconds), 1)}
    for name, step in steps.items():
        # By turns, so that a slow moment of the machine does not pick the batch size.
        rates: dict[int, list[float]] = {size: [] for size in batches}
        for _ in range(2):
            for size in batches:
                rates[size].append(size * rate(lambda size=size, step=step: step(size), options.seconds / 2))
        best = max(batches, key=lambda size: max(rates[size]))
        found[name] = {
            "pairs_per_second": round(max(rates[best]), 2),
            "batch": best,
            "by_batch": {str(size): round(max(values), 2) for size, values in rates.items()},
        }
    print(json.dumps(found))


def rate(call: Callable[[], object], seconds: float) -> float:
    """Calls a second, after one to warm up; at least two calls."""
    call()
    count, started = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - started)


def token_ids(size: int, length: int) -> np.ndarray:
    return np.random.default_rng(size).integers(1000, 20000, size=(size, length), dtype=np.int64)


def torch_step(folder: Path, length: int) -> Callable[[int], object]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()

    def step(size: int) -> object:
        with torch.inference_mode():
            # No mask: the fastest path of the library, and nothing is padded.
            return model(input_ids=torch.from_numpy(token_ids(size, length))).logits

    return step


def onnx_step(folder: Path, length: int, threads: int) -> Callable[[int], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def step(size: int) -> object:
        ids = token_ids(size, length)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return session.run(None, {name: given[name] for name in names})

    return step


def matmul_gflops(seconds: float) -> float:
    """Billions of floating-point operations a second of a large float32 matrix product."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return rate(lambda: left @ right, seconds) * 2 * 2048**3 / 1e9


if __name__ == "__main__":
    main()
