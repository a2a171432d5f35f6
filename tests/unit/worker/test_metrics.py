"""Metrics that say what the worker is and scores: bins of scores, memory, GPUs, the info metric.

No GPU is needed: NVML's library functions are replaced by a few that answer, or fail, as the test wants.
"""

import math
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker import gpus, memory
from rerank_worker.gpus import Gpu, Gpus, visible
from rerank_worker.loading.model import load
from rerank_worker.metrics import Metrics

from .conftest import Serve


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by its labels' values, as a scrape gives them."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == name
    }


@given(st.lists(st.floats(-40, 40), max_size=60), st.floats(0.1, 10))
def test_every_document_is_in_the_bin_of_its_probability(logits: list[float], temperature: float) -> None:
    metrics = Metrics()
    metrics.scores.observe(logits, temperature)
    found = samples(metrics, "rerank_worker_scores_total")
    assert list(found) == [(f"{number / 20:.2f}",) for number in range(20)]
    assert sum(found.values()) == len(logits)
    at_least = 0.0
    probabilities = [1 / (1 + math.exp(-logit / temperature)) for logit in logits]
    for number in range(19, -1, -1):
        at_least += found[(f"{number / 20:.2f}",)]
        # Rounding decides for what is on an edge.
        assert sum(p > number / 20 + 1e-12 for p in probabilities) <= at_least
        assert at_least <= sum(p >= number / 20 - 1e-12 for p in probabilities)


async def test_scores_are_counted_by_document_and_whatever_the_activation(serve: Serve) -> None:
    # The engine's logits are the pairs' lengths: [CLS] q [SEP] and one to three letters, [SEP].
    running = await serve(temperature=4.0)
    body = {"query": "q", "documents": ["a", "ab", "abc"]}
    await running.score(body)
    await running.score(body | {"raw_scores": True})
    found = samples(running.server.metrics, "rerank_worker_scores_total")
    # sigmoid(5 / 4), sigmoid(6 / 4), sigmoid(7 / 4)
    assert {lower: count for (lower,), count in found.items() if count} == {"0.75": 2, "0.80": 2, "0.85": 2}


def test_memory_is_that_of_the_process() -> None:
    found = samples(Metrics(), "rerank_worker_memory_bytes")
    told = Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]
    # Without CUDA there is no series for a device.
    assert list(found) == [("host",)]
    assert found[("host",)] == pytest.approx(int(told) * 1024, rel=0.1)
    assert 0 < memory.unused_host() <= memory.host_bytes()


UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("1", ["GPU-aa22"]),
        ("2, 0", ["GPU-bb33", "GPU-aa11"]),
        # As CUDA does it: the first that is not there ends the list.
        ("0,7,1", ["GPU-aa11"]),
        ("GPU-bb33,GPU-aa11", ["GPU-bb33", "GPU-aa11"]),
        ("GPU-b", ["GPU-bb33"]),
        ("GPU-aa", []),
        ("NoDevFiles", []),
    ],
)
def test_gpus_that_the_environment_shows(told: str | None, expected: list[str]) -> None:
    assert visible(told, UUIDS) == expected


@dataclass
class Nvml:
    """NVML's functions, with GPUs by UUID; ``failing``: names of functions that answer with an error."""

    uuids: list[str] = field(default_factory=lambda: list(UUIDS))
    failing: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.uuids),
            "nvmlDeviceGetHandleByIndex": lambda number: self.uuids[number],
            "nvmlDeviceGetUUID": lambda handle: handle,
            "nvmlDeviceGetHandleByUUID": self._handle,
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=10 * int(handle[-1])),
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=int(handle[-2:]), total=100),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, self._function(name, answer))

    def _handle(self, uuid: str) -> str:
        if uuid not in self.uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def _function(self, name: str, answer: Any) -> Any:
        def function(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.failing:
                raise pynvml.NVMLError(self.failing[name])
            return answer(*arguments)

        return function


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    found = Nvml()
    found.install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(memory, "cuda", lambda: None)
    return found


def test_gpus_are_told_by_the_numbers_that_the_process_knows(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb33,1")
    metrics = Metrics()
    assert nvml.calls == []
    assert samples(metrics, "rerank_worker_gpu_utilization_ratio") == {("0",): 0.3, ("1",): 0.2}
    assert samples(metrics, "rerank_worker_gpu_memory_used_bytes") == {("0",): 33, ("1",): 22}
    assert samples(metrics, "rerank_worker_gpu_memory_total_bytes") == {("0",): 100, ("1",): 100}
    assert nvml.calls.count("nvmlInit") == 1


def test_where_cuda_is_in_use_its_own_order_counts(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA may put the fastest GPU first, where NVML goes by the slots; and a part of a GPU has its own UUID."""
    nvml.uuids = [*UUIDS, "MIG-cc44"]
    seen = ["bb33", "cc44", "aa11"]
    cuda = SimpleNamespace(
        device_count=lambda: len(seen),
        get_device_properties=lambda number: SimpleNamespace(uuid=seen[number]),
        memory_allocated=lambda: 12,
    )
    monkeypatch.setattr(memory, "cuda", lambda: cuda)
    metrics = Metrics()
    assert samples(metrics, "rerank_worker_gpu_memory_used_bytes") == {("0",): 33, ("1",): 44, ("2",): 11}
    assert samples(metrics, "rerank_worker_memory_bytes")[("device",)] == 12


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ("nvmlDeviceGetUtilizationRates", [Gpu(0, None, 11, 100), Gpu(1, None, 22, 100), Gpu(2, None, 33, 100)]),
        ("nvmlDeviceGetMemoryInfo", [Gpu(0, 0.1, None, None), Gpu(1, 0.2, None, None), Gpu(2, 0.3, None, None)]),
        ("nvmlDeviceGetHandleByUUID", []),
        ("nvmlDeviceGetHandleByIndex", []),
        ("nvmlDeviceGetUUID", []),
        ("nvmlDeviceGetCount", []),
        ("nvmlInit", []),
    ],
)
def test_what_nvml_does_not_say_has_no_series_in_that_scrape(nvml: Nvml, failing: str, expected: list[Gpu]) -> None:
    reader = Gpus()
    nvml.failing[failing] = pynvml.NVML_ERROR_UNKNOWN
    assert reader.read() == expected
    metrics = Metrics()
    told = [
        name
        for name in ("utilization_ratio", "memory_used_bytes", "memory_total_bytes")
        if samples(metrics, f"rerank_worker_gpu_{name}")
    ]
    assert len(told) == sum([any(g.utilization is not None for g in expected), 2 * any(g.used_bytes for g in expected)])
    # The next scrape asks again.
    nvml.failing.clear()
    assert len(reader.read()) == 3


def test_a_driver_that_hangs_takes_one_scrape_with_it_and_no_other(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def hangs(_: object) -> Any:
        asked.set()
        assert goes_on.wait(20)
        return SimpleNamespace(gpu=10)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", hangs)
    reader = Gpus(patience=0.01)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(reader.read)
        assert asked.wait(20)
        assert reader.read() == []
        goes_on.set()
        assert len(first.result(20)) == 3
    assert len(reader.read()) == 3


def test_a_machine_without_nvml_is_asked_once(nvml: Nvml) -> None:
    nvml.failing["nvmlInit"] = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    reader = Gpus()
    assert reader.read() == reader.read() == []
    assert nvml.calls == ["nvmlInit"]


def test_real_nvml_is_asked_here_and_nothing_is_made_up() -> None:
    """Where there is no GPU the real library is missing, or says that it has no driver."""
    for gpu in gpus.Gpus().read():
        assert gpu.used_bytes is None or gpu.total_bytes is None or gpu.used_bytes <= gpu.total_bytes


NOTHING = dict.fromkeys(("architecture", "device", "model", "model_sha256", "precision", "tokenizer_sha256"), "")


def infos(metrics: Metrics) -> list[dict[str, str]]:
    return [
        {name: value for name, value in sample.labels.items() if name != "version"}
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "rerank_worker_info"
    ]


def test_what_is_served_is_told_while_it_is() -> None:
    metrics = Metrics()
    assert infos(metrics) == [NOTHING]
    metrics.serving.set("a", {"model": "org/a"})
    metrics.serving.set("b", {"model": "org/b", "device": "cpu"})
    # The same model twice would be the same series twice, which Prometheus refuses.
    metrics.serving.set("c", {"model": "org/a"})
    assert infos(metrics) == [NOTHING | {"model": "org/a"}, NOTHING | {"model": "org/b", "device": "cpu"}]
    metrics.serving.remove("a")
    metrics.serving.remove("b")
    metrics.serving.remove("c")
    assert infos(metrics) == [NOTHING]


async def test_the_info_metric_names_the_models_files(serve: Serve, tiny_bert: Path) -> None:
    running = await serve(load=lambda config: load(config, 1, quick=True), ready=False)
    assert infos(running.server.metrics) == [NOTHING]
    config = WorkerConfig(model=ModelSource(path=str(tiny_bert)), device="cpu")
    standby = await serve(load=lambda _: load(config, 1, quick=True), standby=True)
    await standby.server.models.put("key", config, float("inf"))
    found = infos(standby.server.metrics)

    def summed(command: str) -> str:
        done = subprocess.run(["sh", "-c", command], cwd=tiny_bert, capture_output=True, text=True, check=True)
        return done.stdout.split()[0]

    assert found == [
        {
            "architecture": "BertForSequenceClassification",
            "device": "cpu",
            "model": "tiny-bert",
            "model_sha256": summed("sha256sum *.safetensors | sha256sum"),
            "precision": "float32",
            "tokenizer_sha256": summed("sha256sum tokenizer.json"),
        }
    ]
    await standby.server.models.delete("key", float("inf"))
    assert infos(standby.server.metrics) == [NOTHING]
