"""Labels on answers: what is counted of them, and what is refused."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_gateway.cluster.state import Policy
from rerank_gateway.feedback import BINS, MAX_BODY_BYTES, MAX_LABELS, Label, parse, tally

GOOD = {"labels": [{"score": 0.9, "relevant": True}]}
LABELS = ('namespace="search"', 'reranker="products"')


@pytest.mark.parametrize(
    ("score", "bin_"),
    [(0, "0.0"), (0.0999, "0.0"), (0.1, "0.1"), (0.3, "0.3"), (0.6, "0.6"), (0.7, "0.7"), (0.95, "0.9"), (1, "0.9")],
)
def test_bins_begin_with_their_lower_edge(score: float, bin_: str) -> None:
    bins, _ = tally([Label(score, True)])
    assert [name for name, of_bin in zip(BINS, bins, strict=True) if of_bin.labels] == [bin_]


@given(st.lists(st.builds(Label, st.floats(0, 1), st.booleans()), min_size=1, max_size=100))
def test_the_sums_are_those_of_the_labels(labels: list[Label]) -> None:
    bins, squared_error = tally(labels)
    assert sum(of_bin.labels for of_bin in bins) == len(labels)
    assert sum(of_bin.relevant for of_bin in bins) == sum(label.relevant for label in labels)
    assert math.isclose(sum(of_bin.scores for of_bin in bins), math.fsum(label.score for label in labels), abs_tol=1e-9)
    assert 0 <= squared_error <= len(labels)
    for of_bin in bins:
        assert 0 <= of_bin.relevant <= of_bin.labels
        assert of_bin.scores <= of_bin.labels


async def _feedback(house: Any, body: object, path: str = "/v1/feedback", **options: Any) -> tuple[int, Any]:
    async with house.client.post(house.url + path, json=body, **options) as response:
        return response.status, await response.json() if response.status != 204 else await response.read()


async def test_labels_are_counted_by_revision_and_bin(house) -> None:
    house.serve(await house.worker("one"))
    labels = [
        {"score": 0.92, "relevant": True},
        {"score": 0.98, "relevant": False},
        {"score": 0, "relevant": False, "note": "unknown fields are ignored"},
    ]
    assert await house.metric("rerank_gateway_feedback") == 0
    assert await _feedback(house, {"model": "products", "revision": "one", "labels": labels}) == (204, b"")
    assert await _feedback(house, {"model": None, "revision": None, "labels": labels[:1]}) == (204, b"")
    one, told_nothing = (*LABELS, 'revision="one"'), (*LABELS, 'revision=""')
    assert await house.metric("rerank_gateway_feedback_labels_total", *one, 'bin="0.9"') == 2
    assert await house.metric("rerank_gateway_feedback_labels_total", *one) == 3
    assert await house.metric("rerank_gateway_feedback_relevant_total", *one, 'bin="0.9"') == 1
    assert await house.metric("rerank_gateway_feedback_scores_total", *one, 'bin="0.9"') == pytest.approx(1.9)
    squared = 0.08**2 + 0.98**2
    assert await house.metric("rerank_gateway_feedback_squared_error_total", *one) == pytest.approx(squared)
    assert await house.metric("rerank_gateway_feedback_labels_total", *told_nothing) == 1

    # They are no requests to rerank.
    assert await house.metric("rerank_gateway_sli_requests_total") == 0
    assert await house.metric("rerank_gateway_requests_total", *LABELS) == 0
    assert await house.metric("rerank_gateway_requests_total", 'reranker=""', 'code="204"') == 2


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "labels", "required"),
        ({"labels": []}, "labels", "length >= 1"),
        ({"labels": [{"score": 0.5, "relevant": True}] * (MAX_LABELS + 1)}, "labels", "length <= 1000"),
        ({"labels": {"score": 0.5}}, "labels", "expected array"),
        ({"labels": [{"relevant": True}]}, "labels[0].score", "required"),
        ({"labels": [{"score": 0.5}]}, "labels[0].relevant", "required"),
        ({"labels": [*GOOD["labels"], {"score": 1.5, "relevant": True}]}, "labels[1].score", "<= 1.0"),
        ({"labels": [{"score": -3, "relevant": True}]}, "labels[0].score", ">= 0.0"),
        ({"labels": [{"score": "0.5", "relevant": True}]}, "labels[0].score", "expected float"),
        ({"labels": [{"score": 0.5, "relevant": 1}]}, "labels[0].relevant", "expected bool"),
        ({**GOOD, "revision": 7}, "revision", "expected str"),
        ({**GOOD, "revision": "absent"}, "revision", "none of that name"),
        ({**GOOD, "model": 7}, "model", "expected str"),
    ],
)
async def test_what_is_wrong_is_named_and_not_counted(house, body: object, field: str, words: str) -> None:
    house.serve(await house.worker())
    status, answer = await _feedback(house, body)
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, "invalid_request", field)
    assert words in answer["message"]
    assert await house.metric("rerank_gateway_feedback") == 0


def test_the_example_in_the_docs_is_one() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "requests.md").read_text()
    (example,) = re.findall(r"curl -i localhost:8080/v1/feedback -d '([^']*)'", page)
    assert len(parse(example.encode()).labels) == 2


async def test_which_reranker(house) -> None:
    house.source.set([Policy("search", "products"), Policy("shop", "products")])
    status, answer = await _feedback(house, GOOD)
    assert (status, answer["error"]["code"]) == (400, "model_required")
    assert (await _feedback(house, {**GOOD, "model": "products"}))[1]["error"]["code"] == "ambiguous_model"
    assert (await _feedback(house, {**GOOD, "model": "search/absent"}))[0] == 404
    assert (await _feedback(house, {**GOOD, "model": "search/products"}))[0] == 204
    assert (await _feedback(house, {**GOOD, "model": "ignored"}, "/shop/products/v1/feedback"))[0] == 204
    assert (await _feedback(house, GOOD, "/shop/absent/v1/feedback"))[0] == 404
    assert await house.metric("rerank_gateway_feedback_labels_total", 'namespace="shop"') == 1

    house.source.synced = False
    assert (await _feedback(house, GOOD))[0] == 503


async def test_bounds_and_methods(house) -> None:
    house.serve()
    async with house.client.post(house.url + "/v1/feedback", data=b" " * (MAX_BODY_BYTES + 1)) as response:
        assert response.status == 413
        assert "send less at once" in await response.text()
    async with house.client.post(house.url + "/v1/feedback", data=b"not JSON") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_json")
    async with house.client.get(house.url + "/v1/feedback") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert (await _feedback(house, GOOD, headers={"Expect": "100-continue"}))[0] == 204


async def test_feedback_needs_a_key_where_reranking_does(open_house, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    house = await open_house(api_keys_file=tmp_path / "keys")
    assert (await _feedback(house, GOOD))[0] == 401
    assert (await _feedback(house, GOOD, headers={"Authorization": "Bearer secret"}))[0] == 204


async def test_nothing_of_a_label_is_logged(house, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await _feedback(house, {"labels": [{"score": 0.123454321, "relevant": True}], "note": "PRIVATE"})
    await _feedback(house, {"labels": [{"score": 99.123454321, "relevant": True}], "revision": "PRIVATE"})
    own = [record for record in caplog.records if record.name.startswith("rerank_gateway")]
    assert len(house.lines) == 2
    told = [*map(str, house.lines), *(str(vars(record)) for record in own)]
    assert not [line for line in told if "123454321" in line or "PRIVATE" in line]
