"""Precision against device: what contradicts is refused with a remedy, what is slow is said."""

from typing import Any

import pytest
from rerank_worker.engine import device
from rerank_worker.failures import ConfigurationFailure


@pytest.mark.parametrize(
    ("asked", "on", "capability", "expected"),
    [
        ("auto", "cpu", None, "float32"),
        ("auto", "cuda", (7, 5), "float16"),
        ("auto", "cuda", (9, 0), "float16"),
        ("float32", "cpu", None, "float32"),
        ("float16", "cpu", None, "float16"),
        ("bfloat16", "cpu", None, "bfloat16"),
        ("int8", "cpu", None, "int8"),
        ("float32", "cuda", (9, 0), "float32"),
        ("bfloat16", "cuda", (8, 0), "bfloat16"),
        ("float8", "cuda", (8, 9), "float8"),
        ("float8", "cuda", (9, 0), "float8"),
        ("float8", "cuda", None, "float8"),
    ],
)
def test_precision(asked: Any, on: Any, capability: tuple[int, int] | None, expected: str) -> None:
    assert device.choose_precision(asked, on, capability) == expected


@pytest.mark.parametrize(
    ("asked", "on", "capability", "message"),
    [
        ("float8", "cpu", None, r"spec\.runtime\.precision is float8, which no CPU.*int8"),
        ("float8", "cuda", (8, 0), r"spec\.runtime\.precision is float8.*capability 8\.0.*8\.9.*float16"),
        ("float8", "cuda", (7, 5), r"spec\.runtime\.precision is float8.*capability 7\.5.*float16"),
        ("int8", "cuda", (9, 0), r"spec\.runtime\.precision is int8.*CPU only.*float16.*spec\.runtime\.device to cpu"),
    ],
)
def test_contradictions_are_refused_with_the_remedy(
    asked: Any, on: Any, capability: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ConfigurationFailure, match=message):
        device.choose_precision(asked, on, capability)


@pytest.mark.parametrize(
    ("precision", "on", "capability", "instructions", "slow"),
    [
        ("float32", "cpu", None, {}, False),
        ("int8", "cpu", None, {}, False),
        ("bfloat16", "cpu", None, {"avx512_f": True, "avx512_bf16": False}, True),
        ("bfloat16", "cpu", None, {"avx512_bf16": True}, False),
        ("bfloat16", "cpu", None, {"amx_bf16": True}, False),
        ("bfloat16", "cpu", None, {"bf16": True, "architecture": "aarch64"}, False),
        ("float16", "cpu", None, {"avx512_bf16": True}, True),
        ("float16", "cpu", None, {"avx512_fp16": True}, False),
        ("float16", "cuda", (7, 5), {}, False),
        ("bfloat16", "cuda", (7, 5), {}, True),
        ("bfloat16", "cuda", (8, 0), {}, False),
        ("bfloat16", "cuda", None, {}, False),
    ],
)
def test_a_slow_precision_is_told(
    precision: Any, on: Any, capability: tuple[int, int] | None, instructions: dict[str, Any], slow: bool
) -> None:
    why = device.slow_precision(precision, on, capability, instructions)
    assert (why is not None) == slow
    assert why is None or why.startswith(f"spec.runtime.precision is {precision}")


def test_the_names_of_instructions_are_torchs_own() -> None:
    import torch

    known = torch.cpu.get_capabilities()
    if known["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16"} <= set(known)


def test_this_machine_decides() -> None:
    assert device.probe_precision("auto", "cpu") == "float32"
    with pytest.raises(ConfigurationFailure, match="float8"):
        device.probe_precision("float8", "cpu")
