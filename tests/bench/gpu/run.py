"""The worker's GPU engine against its peers on one GPU: one command, no network, JSON and a table.

    python tests/bench/gpu/run.py [--shape minilm-l6 base large] [--json FILE]
    python tests/bench/gpu/run.py --device cpu --tiny        # a dry run of the script itself; its figures mean nothing

float16, 100 documents a request, pairs of log-normal length, random weights made here. In one run, by turns:
``ours`` (the worker's own loading and engine: flat, compiled, graphs), ``st`` (sentence-transformers' CrossEncoder,
float16, sorted, batch 64) and ``bucketed`` (torch.compile over sorted batches of 64 that are padded to a multiple of
16). Besides: the GPU's own float16 matmul rate and the share of it that is reached, memory in float16 against float32,
whether rankings are those of the plain float32 model, and latency of the real server under an open loop at 70 % of its
capacity. Needs this checkout, torch, transformers, sentence-transformers, aiohttp, msgspec and prometheus-client.
"""

import argparse
import datetime
import gc
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[3]
PATHS = [str(ROOT / part) for part in ("tests/bench", "worker", "operator")]
sys.path[:0] = PATHS

import numpy as np  # noqa: E402
import torch  # noqa: E402

from worker import load, servers, workload  # noqa: E402

BATCH, LENGTH_BUCKET = 64, 16
"""Of the peers: the batch size that is usual on a GPU, and the seed project's bucket."""

MAX_DELAY_SECONDS = 0.005
WARM_SECONDS = 120.0
"""Longest wait for compiled code and captured graphs to serve."""

CHECKED_REQUESTS = 5
CLIENTS = (1, 16, 64)
SHAPES: dict[str, dict[str, Any]] = {
    "minilm-l6": {"kind": "bert", "layers": 6, "hidden": 384, "heads": 12},
    "base": {"kind": "xlm-roberta", "layers": 12, "hidden": 768, "heads": 12},
    "large": {"kind": "xlm-roberta", "layers": 24, "hidden": 1024, "heads": 16},
}
TINY = {"layers": 2, "hidden": 64, "heads": 2}
VOCABULARY = 30522

Texts = tuple[str, str]


class Contender(Protocol):
    """Scores (query, document) texts: logits, in the order given."""

    def score(self, pairs: Sequence[Texts]) -> np.ndarray: ...

    def close(self) -> None: ...


def main() -> int:
    options = arguments()
    if options.part == "memory":
        print(json.dumps(memory_of(options.folder, options.precision, options)))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device that torch can use: run this on a machine with a GPU and a CUDA build of torch, or try the "
            "script itself with --device cpu --tiny",
            file=sys.stderr,
        )
        return 2
    if missing := missing_packages():
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "benchmark": "tests/bench/gpu",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[1:]),
        "dry_run": options.tiny or options.device == "cpu",
        "machine": machine(options.device),
        "matmul_fp16_tflops": matmul_tflops(options),
        "shapes": {},
    }
    for name in options.shape:
        note(f"{name}: making the model")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            shape = SHAPES[name] | (TINY if options.tiny else {})
            make_model(folder, shape, options)
            result["shapes"][name] = measure_shape(folder, shape, result["matmul_fp16_tflops"], options)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1).replace(str(ROOT) + "/", "") + "\n", encoding="utf-8")
    print(table(result))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few texts, to try the script")
    parser.add_argument("--documents", type=int, help="a request (default: 100; tiny 10)")
    parser.add_argument("--requests", type=int, help="distinct ones (default: 16; tiny 3)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each contender in each round (default: 1.5)")
    parser.add_argument("--open-seconds", type=float, default=15.0, help="default: 15")
    parser.add_argument("--open-share", type=float, default=0.7, help="of the server's capacity (default: 0.7)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=("memory",), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float16", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.documents = options.documents or (10 if options.tiny else 100)
    options.requests = options.requests or (3 if options.tiny else 16)
    if options.tiny:
        options.seconds, options.rounds, options.open_seconds = 0.2, min(options.rounds, 2), 2.0
    return options


def missing_packages() -> list[str]:
    from importlib.util import find_spec

    needed = ("transformers", "sentence_transformers", "aiohttp", "msgspec", "prometheus_client", "tokenizers")
    return [name for name in needed if find_spec(name) is None]


def measure_shape(
    folder: Path, shape: dict[str, Any], matmul: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    requests = workload.build(folder, requests=options.requests, documents=options.documents)
    texts = [[(request.query, document) for document in request.documents] for request in requests]
    found: dict[str, Any] = {"shape": shape, "workload": workload.describe(requests)}
    # Each in a process of its own, before anything else lies in the GPU's memory.
    for precision in ("float16", "float32"):
        note(f"memory in {precision}")
        found[f"memory_{precision}"] = own_process(folder, precision, options)
    ours = Ours(folder, "float16", options.device)
    contenders: dict[str, Contender] = {
        "ours": ours,
        "st": SentenceTransformers(folder, options),
        "bucketed": Bucketed(folder, options),
    }
    try:
        for name, contender in contenders.items():
            note(f"warming up {name}")
            found.setdefault("warm_seconds", {})[name] = warm(contender, texts)
        found["engine"] = ours.facts()
        found["rounds"] = rounds(contenders, texts, options)
        found["engine_alone"] = engine_alone(ours, texts, requests, shape, matmul, options)
        note("rankings")
        plain = plain_scores(folder, texts[:CHECKED_REQUESTS], options.device)
        found["agreement"] = {
            name: agreement([contender.score(one) for one in texts[:CHECKED_REQUESTS]], plain)
            for name, contender in contenders.items()
        }
    finally:
        for contender in contenders.values():
            contender.close()
    empty(options.device)
    note("the server under load")
    found["server"] = server_under_load(folder, requests, options)
    found["summary"] = summary(found)
    return found


# The contenders.


class Ours:
    """The worker's loading, tokenizer and engine, without its server: batches within its own budget, the host's work
    for the next batch beside the device's for this one."""

    def __init__(self, folder: Path, precision: str, device: str) -> None:
        from rerank_api.worker_config import ModelSource, WorkerConfig
        from rerank_worker.loading.model import load as load_model

        config = WorkerConfig(
            model=ModelSource(path=str(folder)),
            device=device,  # ty: ignore[invalid-argument-type]
            precision=precision,  # ty: ignore[invalid-argument-type]
            backend="torch",
        )
        self._loaded = load_model(config, len(os.sched_getaffinity(0)))

    def facts(self) -> dict[str, Any]:
        info = self._loaded.info
        return {key: info.get(key) for key in ("engine", "precision", "maxBatchTokens", "tokensPerSecond", "versions")}

    def encode(self, pairs: Sequence[Texts]) -> list[Any]:
        tokenizer = self._loaded.tokenizer
        queries = {query: tokenizer.query(query) for query in dict.fromkeys(query for query, _ in pairs)}
        documents = tokenizer.documents([document for _, document in pairs])
        return [tokenizer.pair(queries[query], ids)[0] for (query, _), ids in zip(pairs, documents, strict=True)]

    def score_ids(self, encoded: Sequence[Any]) -> np.ndarray:
        engine, policy = self._loaded.engine, self._loaded.policy
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
        scores = np.zeros(len(encoded))
        running: tuple[list[int], Any] | None = None
        for part in cut(order, [len(one) for one in encoded], policy.max_tokens, engine.padded):
            output = engine.compute(engine.prepare([encoded[index] for index in part]))
            if running is not None:
                scores[running[0]] = engine.collect(running[1])
            running = part, output
        if running is not None:
            scores[running[0]] = engine.collect(running[1])
        return scores

    def score(self, pairs: Sequence[Texts]) -> np.ndarray:
        return self.score_ids(self.encode(pairs))

    def close(self) -> None:
        self._loaded.engine.close()


class SentenceTransformers:
    """CrossEncoder.predict in float16: sorts by length itself, batch 64."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from sentence_transformers import CrossEncoder

        dtype = torch.float16
        self._model: Any = CrossEncoder(
            str(folder),
            device=options.device,
            max_length=512,
            local_files_only=True,
            model_kwargs={"dtype": dtype},
            activation_fn=torch.nn.Identity(),
        )

    def score(self, pairs: Sequence[Texts]) -> np.ndarray:
        return np.asarray(self._model.predict(list(pairs), batch_size=BATCH, show_progress_bar=False), dtype=np.float64)

    def close(self) -> None:
        self._model.model.to("cpu")


class Bucketed:
    """A compiled transformers model over sorted batches, padded to a multiple of 16, in float16."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float16
        )
        self._device = options.device
        self._module = model.to(options.device).eval()
        backend = "eager" if options.tiny else "inductor"
        self._forward = torch.compile(self._module, backend=backend, dynamic=True)

    def score(self, pairs: Sequence[Texts]) -> np.ndarray:
        # Characters stand for tokens, as in sentence-transformers: sorting comes before tokenizing.
        order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index][1]))
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                part = [pairs[index] for index in order[start : start + BATCH]]
                inputs = self._tokenizer(
                    [query for query, _ in part],
                    [document for _, document in part],
                    padding=True,
                    truncation=True,
                    max_length=512,
                    pad_to_multiple_of=LENGTH_BUCKET,
                    return_tensors="pt",
                ).to(self._device)
                outputs.append(self._forward(**inputs).logits[:, 0])
            logits = torch.cat(outputs).float().cpu().numpy()
        scores = np.zeros(len(pairs))
        scores[order] = logits
        return scores

    def close(self) -> None:
        self._module.to("cpu")


# Measurements.


def warm(contender: Contender, texts: Sequence[Sequence[Texts]]) -> float:
    """Score until passes no longer get faster (compiled code, graphs); the seconds that took."""
    begin = time.monotonic()
    best, since = float("inf"), time.monotonic()
    while time.monotonic() - begin < WARM_SECONDS and time.monotonic() - since < 5.0:
        started = time.perf_counter()
        for one in texts:
            contender.score(one)
        took = time.perf_counter() - started
        if took < 0.97 * best:
            best, since = took, time.monotonic()
        if took > 10.0:
            break
    return round(time.monotonic() - begin, 1)


def rounds(
    contenders: dict[str, Contender], texts: Sequence[Sequence[Texts]], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Pairs a second from texts to scores, a request at a time and all requests at once, by turns."""
    everything = [pair for one in texts for pair in one]
    found = []
    for number in range(options.rounds):
        note(f"round {number + 1} of {options.rounds}")
        row: dict[str, float] = {}
        names = list(contenders)
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            score = contenders[name].score
            row[f"{name}_request"] = pairs_per_second(score, list(texts), options.seconds, options.device)
            row[f"{name}_bulk"] = pairs_per_second(score, [everything], options.seconds, options.device)
        found.append(row)
    return found


def pairs_per_second(
    score: Callable[[Any], object], units: Sequence[Sequence[Any]], seconds: float, device: str
) -> float:
    synchronize(device)
    count, number, started = 0, 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < seconds:
        unit = units[number % len(units)]
        score(unit)
        count += len(unit)
        number += 1
    synchronize(device)
    return count / (time.perf_counter() - started)


def engine_alone(
    ours: Ours,
    texts: Sequence[Sequence[Texts]],
    requests: Sequence[workload.Request],
    shape: dict[str, Any],
    matmul: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, float]:
    """From tokens to scores, all requests at once: operations a second, and the share of the chip's matmul rate."""
    encoded = [one for request in texts for one in ours.encode(request)]
    ours.score_ids(encoded)
    rates = [
        pairs_per_second(ours.score_ids, [encoded], options.seconds, options.device) for _ in range(options.rounds)
    ]
    operations = sum(flops(length, shape) for request in requests for length in request.lengths) / len(encoded)
    tflops = median(rates) * operations / 1e12
    return {
        "pairs_per_second": median(rates),
        "spread": (max(rates) - min(rates)) / median(rates),
        "tflops": tflops,
        "share_of_matmul": tflops / matmul["median"],
    }


def flops(length: int, shape: dict[str, Any]) -> float:
    """Floating-point operations of one pair's forward pass, embeddings and head left out."""
    hidden = shape["hidden"]
    linear = 2 * length * (4 * hidden**2 + 2 * hidden * 4 * hidden)
    return shape["layers"] * (linear + 4 * length**2 * hidden)


def matmul_tflops(options: argparse.Namespace) -> dict[str, float]:
    """Of a large float16 product on random numbers, as this chip does it through torch; several times."""
    size = 256 if options.tiny else 8192
    left = torch.randn(size, size, dtype=torch.float16, device=options.device)
    right = torch.randn(size, size, dtype=torch.float16, device=options.device)
    rates = []
    for _ in range(3 + 5):
        synchronize(options.device)
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        synchronize(options.device)
        rates.append(10 * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    measured = rates[3:]
    return {"median": median(measured), "min": min(measured), "max": max(measured), "size": size}


def memory_of(folder: Path, precision: str, options: argparse.Namespace) -> dict[str, float]:
    """MiB that ours holds after loading and at most while it scores, on the GPU."""
    ours = Ours(folder, precision, options.device)
    if options.device != "cuda":
        ours.close()
        return {}
    gc.collect()
    torch.cuda.empty_cache()
    after_load = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    requests = workload.build(folder, requests=options.requests, documents=options.documents)
    ours.score([(request.query, document) for request in requests for document in request.documents])
    free, total = torch.cuda.mem_get_info()
    found = {
        "after_load_mib": after_load / 2**20,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "reserved_mib": torch.cuda.memory_reserved() / 2**20,
        "whole_device_mib": (total - free) / 2**20,
    }
    ours.close()
    return found


def own_process(folder: Path, precision: str, options: argparse.Namespace) -> dict[str, float]:
    command = [
        *(sys.executable, __file__, "--part", "memory", "--folder", str(folder), "--precision", precision),
        *("--device", options.device, "--documents", str(options.documents), "--requests", str(options.requests)),
        *(["--tiny"] if options.tiny else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"the memory could not be measured in {precision}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def plain_scores(folder: Path, texts: Sequence[Sequence[Texts]], device: str) -> list[np.ndarray]:
    """Logits of the plain float32 model, one pair at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.to(device).eval()
    found = []
    with torch.inference_mode():
        for one in texts:
            logits = [
                model(
                    **tokenizer(*pair, truncation="only_second", max_length=512, return_tensors="pt").to(device)
                ).logits
                for pair in one
            ]
            found.append(torch.cat(logits)[:, 0].double().cpu().numpy())
    return found


def agreement(scores: Sequence[np.ndarray], plain: Sequence[np.ndarray]) -> dict[str, float]:
    """Requests whose documents come in the plain model's order; where not, how near those were that changed places."""
    same, gap = 0, 0.0
    for ours, right in zip(scores, plain, strict=True):
        order = np.argsort(-ours, kind="stable")
        same += bool((order == np.argsort(-right, kind="stable")).all())
        # How far a document that stands later is above one that stands earlier.
        best_later = np.maximum.accumulate(right[order][::-1])[::-1]
        gap = max(gap, float((best_later - right[order]).max()))
    return {
        "requests": len(plain),
        "same_ranking": same,
        "largest_swapped_gap": gap,
        "max_difference": max(float(np.abs(ours - right).max()) for ours, right in zip(scores, plain, strict=True)),
        "logits_deviation": float(np.std(np.concatenate(list(plain)))),
    }


def server_under_load(
    folder: Path, requests: Sequence[workload.Request], options: argparse.Namespace
) -> dict[str, Any]:
    """The real server: its capacity in a closed loop, then latency at a share of it in an open one."""
    flags = ["--precision", "float16", "--max-delay-seconds", str(MAX_DELAY_SECONDS), "--device", options.device]
    peer = servers.ours("ours", flags)
    environment = {"PYTHONPATH": os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    servers.BENCH.mkdir(parents=True, exist_ok=True)
    place = servers.Place(folder, folder, servers.free_port(), len(os.sched_getaffinity(0)))
    bodies = [json.dumps(peer.body(request.query, request.documents)).encode() for request in requests]
    found: dict[str, Any] = {"flags": flags, "closed": {}}
    with servers.Server(peer, place, servers.BENCH / "logs" / "gpu.log", environment) as server:
        begin = time.monotonic()
        while time.monotonic() - begin < (1.0 if options.tiny else 30.0):
            load.closed(server.url, bodies, 4, 8)
        for clients in CLIENTS[: 2 if options.tiny else None]:
            run = load.closed(server.url, bodies, clients, max(4 * clients, 16))
            found["closed"][str(clients)] = latencies(run, options.documents)
        capacity = max(one["pairs_per_second"] for one in found["closed"].values())
        arrivals = options.open_share * capacity / options.documents
        run = load.open_loop(server.url, bodies, arrivals, options.open_seconds, workload.SEED)
        found["open"] = {
            "share": options.open_share,
            "arrivals_per_second": arrivals,
            "generator_late_ms": run.late * 1000,
            **latencies(run, options.documents),
        }
        found["info"] = server.get("/v1/info")
    return found


def latencies(run: load.Run, documents: int) -> dict[str, float]:
    good = sorted(sample.seconds * 1000 for sample in run.samples if sample.status == 200)
    shares = {
        f"p{share * 100:.0f}_ms": good[min(len(good) - 1, int(share * len(good)))]
        for share in (0.5, 0.95, 0.99)
        if good
    }
    return {
        "requests": len(run.samples),
        "failed": len(run.samples) - len(good),
        "pairs_per_second": len(good) * documents / run.seconds,
        **shares,
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Ratios within rounds: median, smallest and largest."""
    ratios = {}
    for other in ("st", "bucketed"):
        for unit in ("request", "bulk"):
            values = [row[f"ours_{unit}"] / row[f"{other}_{unit}"] for row in found["rounds"]]
            ratios[f"ours_over_{other}_{unit}"] = {"median": median(values), "min": min(values), "max": max(values)}
    half, full = found["memory_float16"], found["memory_float32"]
    return {
        "ratios": ratios,
        "vram_fp16_over_fp32": half["after_load_mib"] / full["after_load_mib"] if half else None,
    }


# The model, and what else is needed.


def make_model(folder: Path, shape: dict[str, Any], options: argparse.Namespace) -> None:
    """Random weights in ``shape`` with a word-piece tokenizer trained here; the head scaled so that scores differ."""
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    folder.mkdir(parents=True)
    make_tokenizer(folder, shape["kind"])
    torch.manual_seed(workload.SEED)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_labels": 1,
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["hidden"],
        "intermediate_size": 4 * shape["hidden"],
        "num_attention_heads": shape["heads"],
        "pad_token_id": 1,
        # So large that attention picks words and a score depends on its text; with the usual 0.02 it hardly does, and
        # what is left is rounding.
        "initializer_range": 1.5 / shape["hidden"] ** 0.5,
    }
    if shape["kind"] == "bert":
        model: Any = BertForSequenceClassification(BertConfig(**sizes, type_vocab_size=2))
        head = model.classifier
    else:
        config = XLMRobertaConfig(**sizes, type_vocab_size=1, max_position_embeddings=514)
        model = XLMRobertaForSequenceClassification(config)
        head = model.classifier.out_proj
    model.to(options.device).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    request = workload.build(folder, requests=1, documents=10 if options.tiny else 50)[0]
    with torch.inference_mode():
        logits = torch.cat(
            [
                model(**tokenizer(request.query, text, truncation=True, return_tensors="pt").to(options.device)).logits
                for text in request.documents
            ]
        )
        factor = 2.0 / float(logits.std())
        head.weight *= factor
        head.bias.copy_((head.bias - logits.mean()) * factor)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.to("cpu").save_pretrained(folder)
    del model
    empty(options.device)


def make_tokenizer(folder: Path, kind: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    with gzip.open(workload.HELD_OUT, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((row.get("passage") or row.get("query") or "" for row in rows), trainer)
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if kind == "bert" else "[CLS] $A [SEP] [SEP] $B [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": names,
        "model_max_length": 512,
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def cut(order: Sequence[int], lengths: Sequence[int], budget: int, padded: bool) -> list[list[int]]:
    """Batches of ``order`` (longest first) within ``budget`` tokens, padding counted where there is some."""
    batches: list[list[int]] = []
    cost = budget
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        grown = longest * (len(batches[-1]) + 1) if batches and padded else cost + lengths[index]
        if not batches or grown > budget:
            batches.append([])
            grown = lengths[index]
        batches[-1].append(index)
        cost = grown
    return batches


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def machine(device: str) -> dict[str, Any]:
    import sentence_transformers
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "capability": list(torch.cuda.get_device_capability()) if device == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['device']}: float16 matmul {result['matmul_fp16_tflops']['median']:.1f} TFLOP/s"
        + (" (a dry run: the figures mean nothing)" if result["dry_run"] else "")
    ]
    for name, found in result["shapes"].items():
        rates = {key: median([row[key] for row in found["rounds"]]) for key in found["rounds"][0]}
        lines.append(f"\n{name}, {found['engine']['engine']}, pairs/s:")
        lines += [f"  {key:<18} {rate:>10.0f}" for key, rate in rates.items()]
        for key, ratio in found["summary"]["ratios"].items():
            lines.append(f"  {key:<28} {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})")
        alone = found["engine_alone"]
        lines.append(f"  engine alone {alone['tflops']:.1f} TFLOP/s, {alone['share_of_matmul']:.0%} of the matmul rate")
        memory = found["summary"]["vram_fp16_over_fp32"]
        lines.append(f"  memory, float16 over float32: {'not measured' if memory is None else format(memory, '.2f')}")
        for key, one in found["agreement"].items():
            lines.append(
                f"  rankings of {key}: {one['same_ranking']} of {one['requests']} as in float32, largest swapped gap "
                f"{one['largest_swapped_gap']:.1e} of logits that deviate by {one['logits_deviation']:.2f}"
            )
        load_row = found["server"]["open"]
        lines.append(
            f"  server, open loop at {load_row['share']:.0%}: p50 {load_row.get('p50_ms', float('nan')):.1f} ms, "
            f"p95 {load_row.get('p95_ms', float('nan')):.1f} ms, {load_row['failed']} of {load_row['requests']} failed"
        )
    return "\n".join(lines)


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
