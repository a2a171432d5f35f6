"""The cache of graphs: whole entries only, damage noticed, several writers, bounded."""

import os
import threading
import time
from pathlib import Path

import pytest
from rerank_worker.engine import graph_cache
from rerank_worker.failures import EnvironmentFailure


def write(text: str, made: list[str] | None = None):
    def make(folder: Path) -> None:
        (folder / "graph").write_text(text)
        if made is not None:
            made.append(text)

    return make


def test_made_once(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(3):
        place = graph_cache.entry("a", write("graph", made), tmp_path / "cache")
        assert (place / "graph").read_text() == "graph"
    assert made == ["graph"]


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "sums"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    place = graph_cache.entry("a", write("graph"), tmp_path)
    if damage == "changed":
        (place / "graph").write_text("grapH")
    elif damage == "removed":
        (place / "graph").unlink()
    elif damage == "added":
        (place / "more").write_text("")
    else:
        (place / "sha256.json").write_text("{")
    again = graph_cache.entry("a", write("graph"), tmp_path)
    assert sorted(path.name for path in again.iterdir()) == ["graph", "sha256.json"]
    assert (again / "graph").read_text() == "graph"


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "graph").write_text("half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        graph_cache.entry("a", fail, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_models_own_errors_are_not_the_caches(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no file named model.safetensors")

    with pytest.raises(OSError, match="no file named"):
        graph_cache.entry("a", fail, tmp_path)


@pytest.mark.parametrize("damaged", [False, True])
def test_writers_at_once(tmp_path: Path, damaged: bool) -> None:
    if damaged:
        (graph_cache.entry("a", write("graph"), tmp_path) / "graph").write_text("other")
    writers = 4
    together = threading.Barrier(writers)
    seen: list[str] = []

    def make(folder: Path) -> None:
        (folder / "graph").write_text("graph")
        together.wait(20)

    def run() -> None:
        seen.append((graph_cache.entry("a", make, tmp_path) / "graph").read_text())

    threads = [threading.Thread(target=run) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == ["graph"] * writers
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a"]


def test_bounded(tmp_path: Path) -> None:
    now = time.time()
    for number in range(graph_cache.KEPT + 2):
        place = graph_cache.entry(str(number), write("graph"), tmp_path)
        os.utime(place, (now - 100 + number, now - 100 + number))
    abandoned, running = tmp_path / ".draft-1", tmp_path / ".draft-2"
    for draft in (abandoned, running):
        draft.mkdir()
    long_ago = now - 2 * graph_cache.ABANDONED
    os.utime(abandoned, (long_ago, long_ago))
    # The oldest is used again and so stays.
    graph_cache.entry("2", write("graph"), tmp_path)
    graph_cache.entry("new", write("graph"), tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert left == {"new", "2", ".draft-2", *(str(number) for number in range(4, graph_cache.KEPT + 2))}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="XDG_CACHE_HOME"):
        graph_cache.entry("a", write("graph"), tmp_path / "file" / "cache")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert graph_cache.root() == Path("/somewhere/rerank-worker/graphs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/run/rerank/cache")
    assert graph_cache.root() == Path("/run/rerank/cache/.cache/rerank-worker/graphs")
