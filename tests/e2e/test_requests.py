"""Bad HTTP requests through the real gateway and worker: each gets JSON that names what is wrong, and nothing breaks.

With RERANK_WRITE_DOCS=1 in the environment the answers are written to docs/reference/refused-requests.md.
"""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from harness.cluster import ROOT, Cluster
from harness.release import Release, reranker, wait_settled

NAME = "products"
PAGE = ROOT / "docs" / "reference" / "refused-requests.md"


@pytest.fixture(scope="module")
def gateway(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> Iterator[httpx.Client]:
    kube.apply(reranker(NAME, test_namespace, model_uri, replicas=1, requests={"maxDocuments": 1000, "timeout": "20s"}))
    wait_settled(kube, NAME, test_namespace)
    with release.reach_gateways() as urls, httpx.Client(base_url=urls[0], timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def answers() -> Iterator[list[str]]:
    """Rows of the table of answers; written down afterwards when asked to."""
    rows: list[str] = []
    yield rows
    if os.environ.get("RERANK_WRITE_DOCS") and len(rows) == len(BAD) + len(GOOD):
        PAGE.write_text(
            "# Bad and unusual requests, and the answers\n\n"
            '<!-- Written by `RERANK_WRITE_DOCS=1 make test-e2e ARGS="-k test_requests"`. -->\n\n'
            f"As seen on {datetime.now(UTC):%Y-%m-%d} through the gateway and a worker of the local cluster.\n\n"
            "| request | | code | `message` |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
        )


def body(namespace: str, **fields: Any) -> bytes:
    request = {"model": f"{namespace}/{NAME}", "query": "list files", "documents": ["ls lists files"], **fields}
    return json.dumps(request).encode()


# name, method, path, body (a callable of the namespace), expected status, words of the answer
BAD = [
    ("malformed JSON", "POST", "/v2/rerank", lambda n: b'{"model": ', 400, "JSON"),
    ("not an object", "POST", "/v2/rerank", lambda n: b'["a"]', 400, "object"),
    ("empty body", "POST", "/v2/rerank", lambda n: b"", 400, "JSON"),
    ("no query", "POST", "/{n}/products/v2/rerank", lambda n: b'{"documents": ["a"]}', 400, "query"),
    ("query of the wrong type", "POST", "/v2/rerank", lambda n: body(n, query=7), 400, "query"),
    ("empty query", "POST", "/v2/rerank", lambda n: body(n, query=""), 400, "query"),
    ("documents of the wrong type", "POST", "/v2/rerank", lambda n: body(n, documents="a"), 400, "documents"),
    ("a number among the documents", "POST", "/v2/rerank", lambda n: body(n, documents=["a", 1]), 400, "documents"),
    ("no documents", "POST", "/v2/rerank", lambda n: body(n, documents=[]), 400, "documents"),
    ("10,000 documents", "POST", "/v2/rerank", lambda n: body(n, documents=["a"] * 10_000), 400, "maxDocuments"),
    ("a 50 MB body", "POST", "/v2/rerank", lambda n: body(n, documents=["a" * 50_000_000]), 413, "maxBodyBytes"),
    ("top_n of zero", "POST", "/v2/rerank", lambda n: body(n, top_n=0), 400, "top_n"),
    ("top_n of the wrong type", "POST", "/v2/rerank", lambda n: body(n, top_n="3"), 400, "top_n"),
    ("a lone surrogate", "POST", "/v2/rerank", lambda n: body(n, query="\ud800 files"), 400, "surrogate"),
    ("not UTF-8", "POST", "/v2/rerank", lambda n: body(n).replace(b"ls", b"\xff\xfe"), 400, "UTF-8"),
    ("unknown model", "POST", "/v2/rerank", lambda n: body(n, model=f"{n}/absent"), 404, "absent"),
    ("model of the wrong type", "POST", "/v2/rerank", lambda n: body(n, model=["a"]), 400, "model"),
    ("unknown model in the path", "POST", "/nowhere/absent/v2/rerank", lambda n: body(n), 404, "absent"),
    ("wrong method", "GET", "/v2/rerank", lambda n: b"", 405, "POST"),
    ("wrong path", "POST", "/v3/rerank", lambda n: body(n), 404, "/v3/rerank"),
    ("TEI shape, empty texts", "POST", "/{n}/products/rerank", lambda n: b'{"query": "a", "texts": []}', 400, "texts"),
]  # fmt: skip

GOOD = [
    ("control characters", {"query": "list\x00\x01\x1b[31m files\x7f", "documents": ["\x00", "ls\tlists\r\nfiles"]}),
    ("every plane of Unicode", {"documents": ["".join(chr(p * 0x10000 + 0x100) for p in (0, 1, 2, 3, 14, 15, 16))]}),
    ("empty document", {"documents": ["", "ls lists files"]}),
    ("a million characters", {"documents": ["word " * 200_000, "ls lists files"]}),
    ("nulls for what is optional", {"top_n": None, "max_tokens_per_doc": None, "return_documents": None}),
    ("unknown fields", {"truncate": "END", "something_new": {"a": 1}}),
    ("top_n beyond the documents", {"top_n": 50}),
]


@pytest.mark.parametrize(("name", "method", "path", "content", "status", "words"), BAD, ids=[b[0] for b in BAD])
def test_bad_request(
    gateway: httpx.Client, answers: list[str], test_namespace: str, name, method, path, content, status, words
):
    answer = gateway.request(method, path.replace("{n}", test_namespace), content=content(test_namespace))
    message = answer.json().get("message", "").replace("|", "\\|")
    answers.append(f"| {name} | `{method} {path.replace('{n}', 'search')}` | {answer.status_code} | {message} |")
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"].startswith("application/json")
    assert words in answer.json()["message"]


@pytest.mark.parametrize(("name", "fields"), GOOD, ids=[g[0] for g in GOOD])
def test_unusual_but_good_request(gateway: httpx.Client, answers: list[str], test_namespace: str, name, fields):
    answer = gateway.post("/v2/rerank", content=body(test_namespace, **fields))
    answers.append(f"| {name} | `POST /v2/rerank` | {answer.status_code} | |")
    assert answer.status_code == 200, answer.text[:500]
    documents = fields.get("documents", ["ls lists files"])
    assert sorted(r["index"] for r in answer.json()["results"]) == list(range(len(documents)))


def test_all_of_it_broke_nothing(kube: Cluster, gateway: httpx.Client, test_namespace: str):
    """Runs after the tables: same processes, still serving."""
    assert gateway.post("/v2/rerank", content=body(test_namespace)).status_code == 200
    pods = kube.items("pods", "-n", test_namespace)
    assert sum(c["restartCount"] for p in pods for c in p["status"]["containerStatuses"]) == 0
