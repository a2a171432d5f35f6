"""What the flat engine's choices rest on, on this machine's CPU; JSON out.

    python tests/bench/cpu.py

Matrix products as torch does them and as the engine does, attention of short pairs both ways, a product of a size that
oneDNN has not seen, and how long libgomp's threads should spin: alone, and beside one busy process. The demo model;
batches of 2,048 tokens, lengths log-normal. Nothing else should run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

Precision = Literal["float32", "int8"]
FOLDER = Path(__file__).resolve().parents[2] / ".state" / "models" / "demo-reranker"
SPINS = ("passive", "2000", "5000", "20000")
ROUNDS = 1
SECONDS = 4.0
HIDDEN, INNER, HEADS, SIZE = 384, 1536, 12, 32


def timed(function: Callable[[], Any], count: int = 30) -> float:
    """Median seconds of a call."""
    function()
    found = []
    for _ in range(count):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return median(found)


def products() -> dict[str, float]:
    """GFLOP/s of the first feed-forward product of 2,048 tokens; milliseconds more where the size is new."""
    import torch
    from rerank_worker.engine.torch_flat.linear import PackedDense, PlainDense

    found = {}
    work = 2 * 2048 * HIDDEN * INNER / 1e9
    for dtype in (torch.float32, torch.bfloat16):
        weight, bias, x = (
            torch.randn(INNER, HIDDEN, dtype=dtype),
            torch.randn(INNER, dtype=dtype),
            torch.randn(2048, HIDDEN, dtype=dtype),
        )
        for kind in (PlainDense, PackedDense):
            dense = kind(weight, bias)
            name = f"{kind.__name__} {str(dtype).removeprefix('torch.')}"
            found[name] = work / timed(lambda dense=dense, x=x: dense(x))
            found[f"{name} with GELU"] = work / timed(lambda dense=dense, x=x: dense.gelu(x))
    dense = PackedDense(torch.randn(INNER, HIDDEN), None)
    sizes = [torch.randn(size, HIDDEN) for size in range(1900, 1960)]
    passes = [[_seconds(dense, x) for x in sizes] for _ in range(2)]
    found["new size, milliseconds more"] = 1000 * (median(passes[0]) - median(passes[1]))
    return found


def _seconds(function: Callable[[Any], Any], x: Any) -> float:
    started = time.perf_counter()
    function(x)
    return time.perf_counter() - started


def attention() -> dict[str, float]:
    """Microseconds a pair of 112 tokens, in groups of 8, by torch's flash attention and by batched products."""
    import torch
    import torch.nn.functional as F

    q, k, v = torch.randn(3, 8, HEADS, 112, SIZE)
    flat = [x.reshape(8 * HEADS, 112, SIZE) for x in (q, k, v)]

    def batched() -> Any:
        return torch.bmm(torch.softmax(torch.bmm(flat[0], flat[1].transpose(1, 2)), -1), flat[2])

    return {
        "flash": 1e6 * timed(lambda: F.scaled_dot_product_attention(q, k, v)) / 8,
        "batched products": 1e6 * timed(batched) / 8,
    }


def padded() -> float:
    """Tokens/s of the transformers module on batches of 8 pairs of 110 tokens, which need no padding."""
    import torch
    from transformers import AutoModelForSequenceClassification

    module = AutoModelForSequenceClassification.from_pretrained(FOLDER, local_files_only=True).eval()
    ids = torch.randint(1000, 30000, (8, 110))
    with torch.inference_mode():
        return 880 / timed(lambda: module(input_ids=ids), 15)


def engine(precision: Precision) -> dict[str, float]:
    """Tokens/s and tokens a CPU second of the flat engine over requests of 50 documents, for ``SECONDS``."""
    import numpy as np
    from rerank_api.worker_config import ModelSource, WorkerConfig
    from rerank_worker.engine import Pair
    from rerank_worker.engine.device import available_cores
    from rerank_worker.loading.model import load

    config = WorkerConfig(
        model=ModelSource(path=str(FOLDER)),
        precision=precision,
        max_batch_tokens=2048,
    )
    scored = load(config, available_cores(), quick=True).engine
    random = np.random.default_rng(1)
    tokens, batch = 0, []
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < SECONDS:
        length = int(np.clip(random.lognormal(np.log(82), 0.72), 20, 512))
        if sum(map(len, batch)) + length > 2048:
            scored.collect(scored.compute(scored.prepare(batch)))
            tokens += sum(map(len, batch))
            batch = []
        batch.append(Pair(random.integers(1000, 30000, length).tolist(), [0] * length))
    return {
        "tokens_per_second": tokens / (time.perf_counter() - started),
        "tokens_per_cpu_second": tokens / (time.process_time() - cpu),
    }


def spun(spin: str, precision: str, busy: bool) -> dict[str, float]:
    """``engine`` in a process of its own whose threads spin so long."""
    how = {"OMP_WAIT_POLICY": "PASSIVE"} if spin == "passive" else {"GOMP_SPINCOUNT": spin}
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, "--engine", precision]
        done = subprocess.run(command, env=os.environ | how, check=True, capture_output=True, text=True, timeout=120)
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:2] == ["--engine"]:
        print(json.dumps(engine("int8" if sys.argv[2] == "int8" else "float32")))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for precision, busy in (("float32", False), ("int8", False), ("float32", True)):
            for spin in SPINS:
                name = f"{precision}, spin {spin}{', beside a busy process' if busy else ''}"
                print(name, file=sys.stderr)
                runs.setdefault(name, []).append(spun(spin, precision, busy))
    spins = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    from rerank_worker.engine import process

    process.prepare()
    report = {"products": products(), "attention": attention(), "module_tokens_per_second": padded(), "engine": spins}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
