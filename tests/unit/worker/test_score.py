"""Scoring files: nothing lost or doubled by a kill, the scores of serving, bad rows named, nothing held in memory."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker import cli
from rerank_worker.commands import rows, score
from rerank_worker.commands.journal import Done, Journal
from rerank_worker.commands.rows import Bad, Fields, JsonLines, Parquet, Place, Row
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.model import load

from .conftest import WAIT, Serve

FIELDS = Fields("query", "document", "score")


def pairs(count: int) -> list[dict[str, Any]]:
    choice = random.Random(7)
    words = ["".join(choice.choices("abcdefgh", k=choice.randint(1, 5))) for _ in range(60)]
    return [
        {
            "id": number,
            "query": " ".join(choice.choices(words, k=2)),
            "document": " ".join(choice.choices(words, k=choice.randint(0, 25))),
        }
        for number in range(count)
    ]


def write_lines(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    arguments = ["score", "--model", str(model), "--input", str(source), "--output", str(output), "--threads", "1"]
    return [*arguments, "--max-batch-tokens", "512", *more]


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Score ``content`` (rows, or a file); the exit code and what was said."""

    def start(content: list[dict[str, Any]] | Path, *more: str, output: str = "out.jsonl") -> tuple[int, str]:
        source = content if isinstance(content, Path) else write_lines(tmp_path / "in.jsonl", content)
        code = cli.main(command(tiny_bert, source, tmp_path / output, *more), {})
        return code, capsys.readouterr().err

    return start


def test_rows_come_back_in_order_with_scores(run: Run, tmp_path: Path) -> None:
    content = pairs(300)
    code, said = run(content, "--batch-rows", "64")
    assert code == 0
    assert "300 rows, 300 pairs" in said
    found = read_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list(range(300))
    assert [{key: row[key] for key in ("id", "query", "document")} for row in found] == content
    assert all(0 < row["score"] < 1 for row in found)
    assert len({row["score"] for row in found}) > 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


async def test_scores_are_those_of_serve(run: Run, tmp_path: Path, tiny_bert: Path, serve: Serve) -> None:
    documents = [row["document"] for row in pairs(40)] + ["a b c " * 60]
    assert run([{"query": "ab cd", "document": text} for text in documents])[0] == 0
    assert run([{"query": "ab cd", "document": documents}], "--raw-scores", output="raw.jsonl")[0] == 0
    config = WorkerConfig(model=ModelSource(path=str(tiny_bert)))
    running = await serve(build=lambda: load(config, 1))
    for output, raw in (("out.jsonl", False), ("raw.jsonl", True)):
        status, answer, _ = await running.score({"query": "ab cd", "documents": documents, "raw_scores": raw})
        assert status == 200
        found = read_lines(tmp_path / output)
        scores = found[0]["score"] if raw else [row["score"] for row in found]
        assert scores == pytest.approx(answer["scores"], abs=1e-5)


def test_lists_of_documents_get_lists_of_scores(run: Run, tmp_path: Path) -> None:
    content = [
        {"query": "ab", "document": ["a b", "c d e", ""]},
        {"query": "ab", "document": "c d e"},
        {"query": "ab", "document": []},
    ]
    assert run(content)[0] == 0
    first, second, third = (row["score"] for row in read_lines(tmp_path / "out.jsonl"))
    assert len(first) == 3
    assert first[1] == pytest.approx(second, abs=1e-6)
    assert third == []


def test_parquet_keeps_its_columns(run: Run, tmp_path: Path) -> None:
    content = pairs(150)
    source = tmp_path / "in.parquet"
    table = pyarrow.Table.from_pylist(content)
    pyarrow.parquet.write_table(table, source, row_group_size=40)
    assert run(source, "--batch-rows", "32", "--score-field", "relevance", output="out.parquet")[0] == 0
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.schema.names == ["id", "query", "document", "relevance"]
    assert found.drop_columns(["relevance"]).equals(table)
    assert run(content)[0] == 0
    expected = [row["score"] for row in read_lines(tmp_path / "out.jsonl")]
    assert found["relevance"].to_pylist() == pytest.approx(expected, abs=1e-6)
    assert run(source, output="lines.jsonl")[0] == 0
    assert [row["id"] for row in read_lines(tmp_path / "lines.jsonl")] == list(range(150))


def test_parquet_lists_and_bad_rows(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    content = [{"query": "ab", "document": ["a", "b c"]}, {"query": None, "document": ["a"]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), source)
    code, said = run(source, output="out.parquet")
    assert code == 64
    assert "row 2: 'query' is null where it must be a text" in said
    assert run(source, "--skip-bad", output="out.parquet")[0] == 0
    first, second = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(first["score"]) == 2
    assert first["error"] is None
    assert second["score"] is None
    assert "null" in second["error"]


def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs(1_000))
    output, progress = tmp_path / "out.jsonl", tmp_path / "out.jsonl.progress"
    arguments = command(tiny_bert, source, output, "--batch-rows", "20")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "rerank_worker", *arguments], env=environment, stderr=-3)
    limit = time.monotonic() + 3 * WAIT
    while not progress.is_file() or json.loads(progress.read_bytes())["done"]["rows"] < 60:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(WAIT) == -signal.SIGKILL
    assert not output.exists()
    rows_before = json.loads(progress.read_bytes())["done"]["rows"]
    assert 60 <= rows_before < 1_000

    assert cli.main(arguments, {}) == 0
    assert f"going on after {rows_before} rows" in capsys.readouterr().err
    assert not progress.exists()
    whole = tmp_path / "whole.jsonl"
    assert cli.main(command(tiny_bert, source, whole, "--batch-rows", "1000"), {}) == 0
    resumed, expected = read_lines(output), read_lines(whole)
    assert [row["id"] for row in resumed] == list(range(1_000))
    assert [row["score"] for row in resumed] == pytest.approx([row["score"] for row in expected], abs=1e-6)


BAD = [
    ("{", r"it is not JSON"),
    ("[1, 2]", r"it is a list with a number where it must be an object"),
    ('{"query": "a"}', r"there is no field 'document'.*--document-field"),
    ('{"query": 1, "document": "b"}', r"'query' is a number where it must be a text"),
    ('{"query": "a", "document": {"text": "b"}}', r"'document' is an object where it must be a text or a list"),
    ('{"query": "a", "document": ["b", null]}', r"'document' is a list with null"),
    ('{"query": "a", "document": "\\ud800 x"}', r"half of a surrogate pair"),
    ('{"query": "a", "document": "x", "score": 1}', r"'score' already.*--score-field"),
    ('{"query": "' + "abc " * 80 + '", "document": "x"}', r"the query leaves no room"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[reason[:20] for _, reason in BAD])
def test_bad_rows_are_named_by_their_line_and_stop_the_run(run: Run, tmp_path: Path, line: str, reason: str) -> None:
    source = tmp_path / "bad.jsonl"
    source.write_text('\n{"query": "a", "document": "secret"}\n' + line + "\n")
    code, said = run(source)
    assert code == 64
    last = said.splitlines()[-1]
    assert last.startswith("line 3: ")
    assert re.search(reason, last)
    assert "--skip-bad" in last
    assert "Traceback" not in said
    assert not (tmp_path / "out.jsonl").exists()


def test_skipped_rows_are_counted_and_have_a_null_and_an_error(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "bad.jsonl"
    good = '{"query": "a b", "document": "c d", "id": 1.10}'
    source.write_bytes("\n".join([good, *(line for line, _ in BAD), good]).encode() + b"\n\xff\n")
    assert run(source)[0] == 64
    # A run that stopped at a bad row goes on without it.
    code, said = run(source, "--skip-bad")
    assert code == 0
    assert f"{len(BAD) + 1} bad rows" in said
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == len(BAD) + 3
    assert lines[0].startswith(good[:-1] + ',"score":0.')
    assert lines[-2].startswith(good[:-1] + ',"score":0.')
    for line in (*lines[1:-2], lines[-1]):
        row = json.loads(line)
        assert row["score"] is None
        assert row["error"]
    assert json.loads(lines[1])["line"] == 2
    assert json.loads(lines[3])["query"] == "a"


def test_long_documents_follow_the_option(run: Run, tmp_path: Path) -> None:
    content = [{"query": "a", "document": "b " * 200}, {"query": "a", "document": "b"}]
    code, said = run(content)
    assert code == 0
    assert "1 documents cut to fit" in said
    code, said = run(content, "--long-documents", "reject", output="reject.jsonl")
    assert code == 64
    assert "line 1: 1 documents do not fit into 64 tokens" in said
    code, said = run(content, "--long-documents", "chunk", output="chunk.jsonl")
    assert code == 0
    assert "0 documents cut to fit" in said


def test_a_changed_input_or_option_is_refused(run: Run, tmp_path: Path) -> None:
    content = pairs(30)
    content[25]["query"] = 5
    assert run(content, "--batch-rows", "10")[0] == 64
    assert json.loads((tmp_path / "out.jsonl.progress").read_bytes())["done"]["rows"] == 20
    code, said = run(content, "--batch-rows", "10", "--raw-scores")
    assert code == 64
    assert "this run was begun with another choice of raw scores: start over with --restart" in said
    code, said = run(content, "--batch-rows", "10", "--max-length", "32")
    assert code == 64
    assert "another max length" in said
    content[25]["query"] = "mended"
    code, said = run(content)
    assert code == 64
    assert "this run was begun with another input: start over with --restart" in said
    assert run(content, "--restart")[0] == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 30
    code, said = run(content)
    assert code == 64
    assert "exists already" in said
    assert run(content, "--restart")[0] == 0


def test_a_run_that_stopped_before_its_first_rows_leaves_nothing_in_the_way(run: Run, tmp_path: Path) -> None:
    """The corrected command was refused: the run had been begun with another document field."""
    content = pairs(5)
    code, said = run(content, "--document-field", "text")
    assert code == 64
    assert "line 1: there is no field 'text'" in said
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    assert run(content)[0] == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 5


def test_a_run_that_was_killed_before_its_first_rows_may_begin_with_others(tmp_path: Path) -> None:
    progress = tmp_path / "out.jsonl.progress"
    progress.write_text('{"version": 1, "source": {"document_field": "text"}, "done": {}}')
    (tmp_path / "out.jsonl.part").write_text("0.")
    journal = Journal(tmp_path / "out.jsonl", restart=False)
    journal.check(document_field="document")
    journal.begin()
    journal.append([0.5], Place(9, 1), 1, 0, 0)
    assert list(journal.results()) == [0.5]
    journal.close()
    assert json.loads(progress.read_bytes())["source"] == {"document_field": "document"}


def test_another_model_is_refused(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    source = write_lines(tmp_path / "in.jsonl", [*pairs(20), {"query": 1, "document": ""}])
    assert cli.main(command(tiny_bert, source, tmp_path / "out.jsonl", "--batch-rows", "10"), {}) == 64
    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    assert cli.main(command(other, source, tmp_path / "out.jsonl", "--batch-rows", "10"), {}) == 64
    assert "this run was begun with another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "output", "message"),
    [
        (["--input", "nowhere.jsonl"], "out.jsonl", "--input nowhere.jsonl is no file"),
        ([], "missing/out.jsonl", "there is no folder"),
        ([], "out.csv", "the name ends neither in .jsonl nor in .parquet"),
        ([], "out.parquet", "has no schema"),
        ([], "in.jsonl", "the same file"),
        (["--batch-rows", "0"], "out.jsonl", "--batch-rows is less than 1"),
        (["--score-field", "query"], "out.jsonl", "must be three names"),
        (["--score-field", "error"], "out.jsonl", "--score-field is error"),
        (["--threads", "-1"], "out.jsonl", "--threads is -1"),
        (["--restart"], ".", "is a folder"),
        (["--model", "nowhere"], "out.jsonl", "does not exist"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_64(
    run: Run, tmp_path: Path, more: list[str], output: str, message: str
) -> None:
    code, said = run(pairs(2), *more, output=output)
    assert code == 64
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


TEXTS = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
]
LISTS = [
    pyarrow.list_(pyarrow.string()),
    pyarrow.large_list(pyarrow.large_string()),
    pyarrow.list_(pyarrow.string(), 2),
    pyarrow.list_view(pyarrow.string()),
]


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("kind", [*TEXTS, *LISTS], ids=str)
def test_parquet_of_every_type_of_text_and_list(tmp_path: Path, kind: pyarrow.DataType, output: str) -> None:
    document: Any = ["x", "y z"] if kind in LISTS else "x"
    source = tmp_path / "in.parquet"
    query = kind if kind in TEXTS else pyarrow.string()
    columns = {
        "query": pyarrow.array(["a"], pyarrow.string()).cast(query),
        "document": pyarrow.array([document], kind) if kind in LISTS else pyarrow.array(["x"]).cast(kind),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), source)
    reader = rows.reader(source, rows.format_of(tmp_path / output, "--output"), FIELDS)
    assert [row for row, _ in reader.rows(Place())] == [Row(1, "a", list(document), document == "x")]
    result = [0.5, 0.25] if kind in LISTS else 0.5
    reader.write(tmp_path / output, iter([result]), False)
    if output == "out.parquet":
        assert pyarrow.parquet.read_table(tmp_path / output)["score"].to_pylist() == [result]
    else:
        assert read_lines(tmp_path / output) == [{"query": "a", "document": document, "score": result}]


def test_a_column_that_json_cannot_hold_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    odd = pyarrow.array([1], pyarrow.timestamp("ns"))
    pyarrow.parquet.write_table(pyarrow.table({"query": ["a"], "document": ["b"], "odd": odd}), source)
    with pytest.raises(ConfigurationFailure, match=r"column odd \(timestamp\[ns\]\) cannot be written as JSON"):
        Parquet(source, FIELDS, "jsonl")
    Parquet(source, FIELDS, "parquet")


def test_texts_that_are_no_utf8_do_not_stop_the_output(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    broken = pyarrow.array([b"a", b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"query": broken, "document": ["b", "c"]}), source)
    reader = Parquet(source, FIELDS, "jsonl")
    first, second = [row for row, _ in reader.rows(Place())]
    assert first == Row(1, "a", ["b"], True)
    assert isinstance(second, Bad)
    reader.write(tmp_path / "out.jsonl", iter([0.5, {"error": second.reason}]), True)
    assert [row["score"] for row in read_lines(tmp_path / "out.jsonl")] == [0.5, None]


@contextmanager
def full_disk(most: int) -> Generator[None]:
    """Files of this process cannot grow beyond ``most`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_nothing_that_counted_is_lost(run: Run, tmp_path: Path) -> None:
    """Regression: what was told was the second error, of closing the file; and the half-written output stayed."""
    source = write_lines(tmp_path / "in.jsonl", pairs(300))
    with full_disk(4_000):
        code, said = run(source, "--batch-rows", "30")
    assert code == 71
    assert "run the command again to go on" in said.splitlines()[-1]
    before = json.loads((tmp_path / "out.jsonl.progress").read_bytes())["done"]["rows"]
    assert 0 < before < 300
    # Room for the scores, not for the output.
    with full_disk(8_000):
        code, said = run(source, "--batch-rows", "30")
    assert code == 71
    assert json.loads((tmp_path / "out.jsonl.progress").read_bytes())["done"]["rows"] == 300
    assert not (tmp_path / "out.jsonl.new").exists()
    assert run(source)[0] == 0
    assert [row["id"] for row in read_lines(tmp_path / "out.jsonl")] == list(range(300))


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "only a mark"])
def test_a_file_without_rows_gives_one_without_rows(run: Run, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    code, said = run(source)
    assert (code, (tmp_path / "out.jsonl").read_bytes()) == (0, b"")
    assert "0 rows, 0 pairs" in said


def test_a_broken_parquet_file_is_one_sentence(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    source.write_text("no parquet")
    code, said = run(source)
    assert code == 64
    assert "is not a Parquet file" in said


def test_without_pyarrow_the_remedy_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = tmp_path / "in.parquet"
    source.write_bytes(b"PAR1")
    code, said = run(source)
    assert code == 71
    assert "pip install pyarrow" in said


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out.jsonl", restart=False)
    with pytest.raises(ConfigurationFailure, match="another process is writing"):
        Journal(tmp_path / "out.jsonl", restart=True)
    first.close()
    Journal(tmp_path / "out.jsonl", restart=False).close()


@given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5), max_size=6), st.binary())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_what_was_not_committed_is_cut_off(tmp_path: Path, chunks: list[list[float]], rest: bytes) -> None:
    output = tmp_path / "out.jsonl"
    journal = Journal(output, restart=True)
    journal.check(input=1)
    journal.begin()
    for chunk in chunks:
        journal.append(chunk, Place(journal.done.rows, journal.done.rows), len(chunk), 0, 0)
    done = journal.done
    journal.close()
    with output.with_name("out.jsonl.part").open("ab") as file:
        file.write(rest)
    again = Journal(output, restart=False)
    again.check(input=1)
    assert again.done == done
    again.begin()
    again.append([0.5], Place(99, 99), 1, 0, 0)
    assert list(again.results()) == [value for chunk in chunks for value in chunk] + [0.5]
    again.close()
    output.with_name("out.jsonl.progress").unlink()


def test_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.progress").write_text("{")
    with pytest.raises(ConfigurationFailure, match=r"is damaged.*--restart"):
        Journal(tmp_path / "out.jsonl", restart=False)
    (tmp_path / "out.jsonl.progress").write_text('{"version": 1, "source": {}, "done": {"rows": 3, "bytes": 40}}')
    with pytest.raises(ConfigurationFailure, match=r"shorter than it was.*--restart"):
        Journal(tmp_path / "out.jsonl", restart=False)
    assert Journal(tmp_path / "out.jsonl", restart=True).done == Done()


LINES = b'\xef\xbb\xbf{"query":"a","document":"b"}\r\n\n{"query":"c","document":["d"]}\n  \n{"query":"e","document":""}'


def test_json_lines_can_be_read_from_any_place(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINES)
    source = JsonLines(path, FIELDS)
    found = list(source.rows(Place()))
    assert [row for row, _ in found] == [Row(1, "a", ["b"], True), Row(3, "c", ["d"], False), Row(5, "e", [""], True)]
    for index, (_, place) in enumerate(found):
        assert list(source.rows(place)) == found[index + 1 :]
    assert source.fraction(found[-1][1]) == 1.0


def test_a_line_without_end_is_bad_and_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE", 100)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 1000 + b'\n{"query":"a","document":"b"}\n')
    first, second = [row for row, _ in JsonLines(path, FIELDS).rows(Place())]
    assert isinstance(first, Bad)
    assert "longer than 100 bytes" in first.reason
    assert second == Row(2, "a", ["b"], True)


@pytest.mark.parametrize("skipped", [0, 1, 6, 7, 8, 19, 20])
def test_parquet_can_be_read_from_any_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: int) -> None:
    monkeypatch.setattr(rows, "PARQUET_ROWS", 3)
    path = tmp_path / "in.parquet"
    table = pyarrow.Table.from_pylist([{"query": str(number), "document": "d"} for number in range(20)])
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    found = list(Parquet(path, FIELDS, "parquet").rows(Place(skipped, skipped)))
    assert [row.query for row, _ in found if isinstance(row, Row)] == [str(number) for number in range(skipped, 20)]
    assert [place.offset for _, place in found] == list(range(skipped + 1, 21))


def test_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "CHUNK_PAIRS", 10)
    monkeypatch.setattr(score, "CHUNK_CHARACTERS", 1000)
    content: list[Row | Bad] = [Row(1, "q", ["d"] * 12, False), *(Row(n, "q", ["d"], True) for n in range(2, 8))]
    content += [Row(8, "q", ["d" * 2000], True), Row(9, "q", ["d"], True), Bad(10, "bad")]
    found = list(score._chunks(((row, Place(row.number, row.number)) for row in content), Place(), 4))
    assert [len(chunk.rows) for chunk in found] == [1, 4, 3, 2]
    assert [chunk.place.number for chunk in found] == [1, 5, 8, 10]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", "--help"])
    assert ended.value.code == 0
    assert "rerank-worker score --model ./model --input pairs.jsonl --output scored.jsonl" in capsys.readouterr().out
