"""The ONNX Runtime engine against transformers, one unpadded pair at a time: alone, in a crowd, in int8."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rerank_worker.engine import EngineOutOfMemory, EngineUnsupported, graph, graph_cache, onnx_runtime, select
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
    """Saved, and so exported, once for the module."""
    folder = models / name
    return folder if folder.exists() else graphs.MODELS[name](folder)


@pytest.mark.parametrize("name", ["minilm", "xlm-roberta", "modernbert", "deberta"])
def test_scores_are_those_of_transformers(models: Path, name: str) -> None:
    folder = saved(models, name)
    engine = onnx_runtime.build(checkpoints.checkpoint(folder))
    pairs = graphs.make_pairs(folder)
    wanted = graphs.plain(folder, pairs)
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(graphs.score(engine, pairs), wanted, atol=1e-4)
    np.testing.assert_allclose(graphs.alone(engine, pairs), wanted, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_neighbours_have_no_part_in_a_score(models: Path, precision: str) -> None:
    folder = saved(models, "minilm")
    engine = onnx_runtime.build(checkpoints.checkpoint(folder, precision=precision))
    pairs = graphs.make_pairs(folder)
    crowd = graphs.score(engine, pairs)
    np.testing.assert_allclose(graphs.alone(engine, pairs), crowd, atol=1e-5)
    np.testing.assert_allclose(graphs.score(engine, pairs[::-1]), crowd[::-1], atol=1e-5)
    # Near, but not the same: int8 did compute in int8.
    wanted = np.array(graphs.plain(folder, pairs))
    error = np.abs(crowd - wanted).max()
    assert error < 0.1 * np.ptp(wanted)
    assert (error > 1e-4) == (precision == "int8")


def test_the_second_start_reads_the_cache(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(models, "minilm")
    pairs = graphs.make_pairs(folder)
    first = graphs.score(onnx_runtime.build(checkpoints.checkpoint(folder)), pairs)
    monkeypatch.setattr(graph, "export", lambda *_: pytest.fail("exported again"))
    checkpoint = checkpoints.checkpoint(folder)
    assert graphs.score(onnx_runtime.build(checkpoint), pairs) == first
    key = graph_cache.key(checkpoint, "onnx-float32", ("onnx",))
    assert key != graph_cache.key(checkpoint, "onnx-float32", ("onnxruntime",))
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    try:
        assert key != graph_cache.key(checkpoint, "onnx-float32", ("onnx",))
    finally:
        (folder / "config.json").write_text((folder / "config.json").read_text()[:-1])


def test_a_damaged_entry_is_made_again(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(models, "minilm")
    checkpoint = checkpoints.checkpoint(folder, precision="int8")
    pairs = graphs.make_pairs(folder)
    first = graphs.score(onnx_runtime.build(checkpoint), pairs)
    place = graph_cache.root() / graph_cache.key(checkpoint, "onnx-int8", ("onnx", "onnxscript", "onnxruntime"))
    weights = place / f"{onnx_runtime.FILE}.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 255
    weights.write_bytes(data)
    assert graphs.score(onnx_runtime.build(checkpoint), pairs) == first
    assert "damaged" in caplog.text


def test_a_graph_in_the_models_folder_is_not_read(models: Path) -> None:
    folder = saved(models, "minilm")
    (folder / "model.onnx").write_bytes(b"not a graph")
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"not a graph")
    pairs = graphs.make_pairs(folder)
    engine = onnx_runtime.build(checkpoints.checkpoint(folder))
    np.testing.assert_allclose(graphs.score(engine, pairs), graphs.plain(folder, pairs), atol=1e-4)


def test_a_missing_library_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnsupported, match=r"onnxruntime, which is not installed: install rerank-worker\[onnx\]"):
        onnx_runtime.build(checkpoints.checkpoint(saved(models, "minilm")))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"device": "cuda"}, r"spec\.runtime\.backend onnx .*spec\.runtime\.device"),
        ({"precision": "bfloat16"}, r"spec\.runtime\.backend onnx .*bfloat16.*spec\.runtime\.precision"),
        ({"precision": "float16"}, r"spec\.runtime\.backend onnx .*float16"),
    ],
)
def test_what_it_cannot_do_names_the_fields(models: Path, settings: dict[str, str], told: str) -> None:
    with pytest.raises(EngineUnsupported, match=told):
        onnx_runtime.build(checkpoints.checkpoint(saved(models, "minilm"), **settings))


def test_decoders_are_left_to_torch(models: Path) -> None:
    folder = checkpoints.save_qwen3(models / "qwen3")
    with pytest.raises(EngineUnsupported, match="prompt"):
        onnx_runtime.build(checkpoints.checkpoint(folder))


def test_jina_is_left_to_torch(models: Path) -> None:
    folder = checkpoints.save_jina(models / "jina")
    with pytest.raises(EngineUnsupported, match="backend to auto or torch"):
        onnx_runtime.build(checkpoints.checkpoint(folder))


def test_a_graph_that_scores_differently_is_refused(models: Path) -> None:
    checkpoint = checkpoints.checkpoint(saved(models, "minilm"))
    with pytest.raises(EngineUnsupported, match=r"differently in a runtime than in torch"):
        graph.check(checkpoint, "a runtime", lambda inputs: [0.0] * len(inputs["input_ids"]))
    with pytest.raises(EngineUnsupported, match=r"differently in a runtime than in torch"):
        graph.check(checkpoint, "a runtime", lambda inputs: [float("nan")] * len(inputs["input_ids"]))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Failed to allocate 8")])
def test_want_of_memory_is_told_apart(error: Exception) -> None:
    with pytest.raises(EngineOutOfMemory), graph.runtime_errors():
        raise error
    with pytest.raises(RuntimeError, match="invalid shape"), graph.runtime_errors():
        raise RuntimeError("invalid shape")


def test_the_backend_is_chosen_by_name(models: Path) -> None:
    chosen = select.choose("onnx", checkpoints.checkpoint(saved(models, "minilm")))
    assert chosen.engine.name == "onnxruntime"
    assert chosen.engine.padded
