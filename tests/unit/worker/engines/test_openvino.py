"""The OpenVINO engine against transformers, one unpadded pair at a time; its telemetry stays off."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rerank_worker.engine import EngineUnsupported, graph, open_vino, select
from unit.worker.engines import checkpoints, graphs


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def saved(models: Path, name: str) -> Path:
    """Saved, and so converted, once for the module."""
    folder = models / name
    return folder if folder.exists() else graphs.MODELS[name](folder)


@pytest.mark.parametrize("name", ["minilm", "roberta", "camembert", "modernbert-cls", "deberta"])
def test_scores_are_those_of_transformers(models: Path, name: str) -> None:
    folder = saved(models, name)
    engine = open_vino.build(checkpoints.checkpoint(folder))
    pairs = graphs.make_pairs(folder)
    wanted = graphs.plain(folder, pairs)
    np.testing.assert_allclose(graphs.score(engine, pairs), wanted, atol=1e-4)
    np.testing.assert_allclose(graphs.alone(engine, pairs), wanted, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_neighbours_have_no_part_in_a_score(models: Path, precision: str) -> None:
    folder = saved(models, "minilm")
    try:
        engine = open_vino.build(checkpoints.checkpoint(folder, precision=precision))
    except EngineUnsupported as reason:
        assert precision == "bfloat16"
        pytest.skip(str(reason))
    pairs = graphs.make_pairs(folder)
    wanted = np.array(graphs.plain(folder, pairs))
    crowd = np.array(graphs.score(engine, pairs))
    error = np.abs(crowd - wanted).max()
    assert error < 0.1 * np.ptp(wanted)
    # Sums in another order, and where values are rounded, a value that falls on the other side now and then.
    between = 1e-5 if precision == "float32" else 0.03 * np.ptp(wanted)
    np.testing.assert_allclose(graphs.alone(engine, pairs), crowd, atol=between)
    # What the neighbours say, at the same lengths, changes nothing at all.
    others = [
        pairs[0],
        *(type(pair)([*pair.ids[:1], *pair.ids[1:-1][::-1], *pair.ids[-1:]], pair.types) for pair in pairs[1:]),
    ]
    assert graphs.score(engine, others)[0] == crowd[0]


def test_the_second_start_reads_the_cache(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(models, "minilm")
    pairs = graphs.make_pairs(folder)
    first = graphs.score(open_vino.build(checkpoints.checkpoint(folder)), pairs)
    monkeypatch.setattr(graph, "export", lambda *_, **__: pytest.fail("converted again"))
    assert graphs.score(open_vino.build(checkpoints.checkpoint(folder)), pairs) == first


def test_an_output_outlives_the_next_batch(models: Path) -> None:
    folder = saved(models, "minilm")
    engine = open_vino.build(checkpoints.checkpoint(folder))
    pairs = graphs.make_pairs(folder)
    first = engine.compute(engine.prepare(pairs[:4]))
    before = first.tolist()
    engine.compute(engine.prepare(pairs[4:8]))
    assert engine.collect(first) == before


def test_a_missing_library_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineUnsupported, match=r"openvino, which is not installed: install rerank-worker\[openvino\]"):
        open_vino.build(checkpoints.checkpoint(saved(models, "minilm")))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"device": "cuda"}, r"spec\.runtime\.backend openvino .*spec\.runtime\.device"),
        ({"precision": "float16"}, r"spec\.runtime\.backend openvino .*float16.*spec\.runtime\.precision"),
    ],
)
def test_what_it_cannot_do_names_the_fields(models: Path, settings: dict[str, str], told: str) -> None:
    with pytest.raises(EngineUnsupported, match=told):
        open_vino.build(checkpoints.checkpoint(saved(models, "minilm"), **settings))


def test_the_backend_is_chosen_by_name(models: Path) -> None:
    assert select.choose("openvino", checkpoints.checkpoint(saved(models, "minilm"))).engine.name == "openvino"


def test_no_telemetry(models: Path, tmp_path: Path) -> None:
    """In a process of its own: no socket but a local one is opened, nothing is written outside the cache."""
    folder = saved(models, "minilm")
    home = tmp_path / "home"
    home.mkdir()
    script = f"""
import sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("NETWORK", event, arguments)
sys.addaudithook(audit)
from pathlib import Path
from unit.worker.engines import checkpoints
from rerank_worker.engine import open_vino
engine = open_vino.build(checkpoints.checkpoint(Path({str(folder)!r})))
print("telemetry", sys.modules["openvino_telemetry"])
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3])}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert "NETWORK" not in found.stdout
    assert "telemetry None" in found.stdout
    assert list(home.iterdir()) == []
