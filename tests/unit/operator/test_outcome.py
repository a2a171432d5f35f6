"""What a reconcile that raises comes to."""

import pytest
from rerank_operator.controller.api import ApiError, NotLeader, Unreachable
from rerank_operator.controller.apply import NotYet
from rerank_operator.controller.outcome import is_failure, outcome


@pytest.mark.parametrize(
    ("raised", "ended", "failed"),
    [
        (None, "ok", False),
        (NotLeader(), "not leader", False),
        (ApiError(409, "Conflict", "changed meanwhile"), "conflict", True),
        (ApiError(422, "Invalid", "spec.replicas"), "refused", True),
        (NotYet("its namesake is not gone yet"), "waiting", True),
        (Unreachable("refused"), "unreachable", True),
        (TimeoutError(), "unreachable", True),
        (KeyError("status"), "error", True),
    ],
)
async def test_outcomes(raised: Exception | None, ended: str, failed: bool):
    async def reconcile() -> str:
        if raised is not None:
            raise raised
        return "ok"

    assert await outcome(reconcile(), {"namespace": "search", "reranker": "products"}) == ended
    assert is_failure(ended) is failed
