import pytest
from rerank_api.reranker import Model, RerankerSpec, Scaling
from rerank_operator.scaling.replicas import desired_replicas


@pytest.mark.parametrize(
    ("replicas", "low", "high", "suspend", "expected"),
    [
        (None, 0, 1000, False, 1),
        (None, 3, 1000, False, 3),
        (None, 0, 0, False, 0),
        (0, 0, 8, False, 0),
        (0, 2, 8, False, 2),
        (5, 0, 8, False, 5),
        (9, 0, 8, False, 8),
        (5, 0, 8, True, 0),
        (5, 2, 8, True, 0),
    ],
)
def test_desired_replicas(replicas: int | None, low: int, high: int, suspend: bool, expected: int):
    spec = RerankerSpec(Model("file:///m"), scaling=Scaling(low, high), replicas=replicas, suspend=suspend)
    assert desired_replicas(spec) == expected
