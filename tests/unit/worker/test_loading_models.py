"""The whole load, from a folder to scores, of every checkpoint that engines are tested with, against CrossEncoder.

CrossEncoder cannot load jina's without its code: XLM-R, whose weights they are, stands in.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.engine import EngineLost, EngineOutOfMemory
from rerank_worker.failures import EnvironmentFailure
from rerank_worker.loading import model
from rerank_worker.loading.model import Loaded, load
from unit.worker.engines import checkpoints

QUERY = "which one"
DOCUMENTS = ["alpha", "", "0123 beta " * 3, "x y z", "Übung 中文 end.", "a b c d e f g h"]
FOLDERS: dict[str, Callable[[Path], Path]] = checkpoints.PADDED | checkpoints.DECODERS | {"jina": checkpoints.save_jina}


def score(loaded: Loaded) -> list[float]:
    tokenizer, engine = loaded.tokenizer, loaded.engine
    query = tokenizer.query(QUERY)
    pairs = [tokenizer.pair(query, document)[0] for document in tokenizer.documents(DOCUMENTS)]
    return engine.collect(engine.compute(engine.prepare(pairs)))


def predict(folder: Path) -> np.ndarray:
    from sentence_transformers import CrossEncoder
    from torch import nn

    peer = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    return peer.predict(pairs, activation_fn=nn.Identity(), show_progress_bar=False)


@pytest.mark.parametrize("name", list(FOLDERS))
def test_loads_and_scores_like_cross_encoder(name: str, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path / name)
    expected = predict(checkpoints.save_xlm_roberta(tmp_path / "same") if name == "jina" else folder)
    loaded = load(WorkerConfig(model=ModelSource(path=str(folder)), device="cpu"), 2, quick=True)
    assert np.ptp(expected) > 0.02
    assert score(loaded) == pytest.approx(expected.tolist(), abs=2e-5)
    assert loaded.info["tokenizerSha256"] == loaded.info["sha256"]["tokenizer.json"]


@pytest.mark.parametrize("error", [EngineOutOfMemory("no room"), EngineLost("gone"), MemoryError()])
def test_what_the_machine_lacks_is_not_the_model_s_fault(error: Exception, tmp_path: Path) -> None:
    """Trying again, or another machine, may help: the exit code says so."""
    with pytest.raises(EnvironmentFailure), model._told(tmp_path):
        raise error


@pytest.mark.parametrize(
    ("name", "expected"), [("minilm", True), ("electra", True), ("xlm-roberta", False), ("deberta", False)]
)
def test_type_ids_where_the_config_says_nothing_of_them(name: str, expected: bool, tmp_path: Path) -> None:
    """transformers' own defaults, which files written by hand rely on."""
    checkpoint = checkpoints.checkpoint(checkpoints.PADDED[name](tmp_path / name))
    checkpoint.config.pop("type_vocab_size", None)
    assert checkpoint.takes_types == expected
