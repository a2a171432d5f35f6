"""An image's name as people write it, as values of the chart."""

import pytest
from harness.release import image_values


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("rerank-operator", ("rerank-operator", "", "")),
        ("registry.example/search/rerank:1.2", ("registry.example/search/rerank", "1.2", "")),
        ("localhost:5000/rerank", ("localhost:5000/rerank", "", "")),
        ("localhost:5000/rerank:1.2@sha256:ab", ("localhost:5000/rerank", "1.2", "sha256:ab")),
        ("r/rerank@sha256:ab", ("r/rerank", "", "sha256:ab")),
    ],
)
def test_image_values(image: str, expected: tuple[str, str, str]):
    repository, tag, digest = expected
    assert image_values("worker.image", image) == [
        f"worker.image.repository={repository}",
        f"worker.image.tag={tag}",
        f"worker.image.digest={digest}",
    ]
