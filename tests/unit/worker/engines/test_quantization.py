"""Layers in int8 and float8, their calibration, and the int8 flat engine against float32."""

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rerank_worker.engine import Engine, EngineUnsupported, Pair, select
from rerank_worker.engine.quantization import float8, int8, sample
from rerank_worker.engine.quantization.observe import Observations, observing
from rerank_worker.engine.quantization.quality import scored
from rerank_worker.engine.torch_flat import linear
from unit.worker.engines.checkpoints import BERT_VOCABULARY, checkpoint, save_minilm

needs_int8 = pytest.mark.skipif(int8.unsupported() is not None, reason=str(int8.unsupported()))

METHODS = ["plain", "gelu", "add"]


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias, residual; two rows of x are twenty times larger than the others."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(40, 64, generator=made)
    x[[3, 17]] *= 20
    return (
        x,
        torch.randn(48, 64, generator=made) * 0.1,
        torch.randn(48, generator=made),
        torch.randn(40, 48, generator=made),
    )


def apply(dense: linear.Dense, method: str, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    if method == "plain":
        return dense(x)
    return dense.gelu(x) if method == "gelu" else dense.add(x, residual)


@needs_int8
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_int8_layers_differ_by_the_noise_of_quantization_only(method: str, with_bias: bool) -> None:
    x, weight, bias, residual = inputs()
    given = bias if with_bias else None
    kept = x.clone(), residual.clone()
    found = apply(int8.Int8Dense(weight, given, -4.0, 4.0), method, x, residual)
    truth = apply(linear.PlainDense(weight, given), method, x, residual)
    # Rounding is uniform: step / sqrt(12) for each product, of inputs and of weights; six deviations.
    steps = torch.maximum(torch.tensor(8 / 255), x.abs().amax(1) / 127)[:, None] / 12**0.5
    of_inputs = steps * weight.norm(dim=1)
    of_weights = x.norm(dim=1)[:, None] * (weight.abs().amax(1) / 127) / 12**0.5
    # GELU grows by 1.13 at most.
    assert ((found - truth).abs() < 1.13 * 6 * (of_inputs**2 + of_weights**2).sqrt() + 1e-4).all()
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])


@needs_int8
def test_an_int8_feed_forward_differs_from_its_two_layers_by_the_rounding_between_them() -> None:
    x, weight, bias, _ = inputs()
    made = torch.Generator().manual_seed(2)
    second, residual = torch.randn(64, 48, generator=made) * 0.1, torch.randn(40, 64, generator=made)
    inner, outer = int8.Int8Dense(weight, bias, -4.0, 4.0), int8.Int8Dense(second, None, -0.2, 3.0)
    kept = residual.clone()
    found = inner.feed(x, outer, residual)
    between = linear.PlainDense(weight, bias).gelu(x)
    assert (between > 3.0).any(), "some rows must overflow between the layers"
    truth = outer.add(inner.gelu(x), residual)
    step = torch.maximum(torch.tensor(3.2 / int8.STEPS), between.abs().amax(1) / 127)[:, None]
    assert ((found - truth).abs() <= step * second.abs().sum(1) + 1e-4).all()
    assert torch.equal(residual, kept)


@needs_int8
def test_an_int8_feed_forward_computes_each_row_for_itself() -> None:
    x, weight, bias, _ = inputs()
    second = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)) * 0.1
    residual = torch.zeros(40, 64)
    inner, outer = int8.Int8Dense(weight, bias, -4.0, 4.0), int8.Int8Dense(second, None, -0.2, 3.0)
    alone = torch.cat([inner.feed(row[None], outer, residual[:1]) for row in x])
    assert torch.allclose(inner.feed(x, outer, residual), alone, atol=1e-5)


@needs_int8
def test_an_int8_layer_feeds_one_of_another_precision() -> None:
    x, weight, bias, residual = inputs()
    inner, outer = int8.Int8Dense(weight, bias, -4.0, 4.0), linear.PlainDense(torch.eye(48), None)
    assert torch.allclose(inner.feed(x, outer, residual), inner.gelu(x) + residual, atol=1e-5)


@needs_int8
def test_int8_rows_do_not_depend_on_other_rows() -> None:
    x, weight, bias, _ = inputs()
    dense = int8.Int8Dense(weight, bias, -4.0, 4.0)
    alone = torch.cat([dense.gelu(row[None]) for row in x])
    assert torch.allclose(dense.gelu(x), alone, atol=1e-5)


@needs_int8
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (-0.17, 24.0)])
def test_int8_of_any_range_is_close(low: float, high: float) -> None:
    x, weight, bias, _ = inputs()
    found, truth = int8.Int8Dense(weight, bias, low, high)(x), F.linear(x, weight, bias)
    assert ((found - truth).norm() / truth.norm()) < 0.05


@needs_int8
def test_int8_of_zeros_is_the_bias() -> None:
    _, weight, bias, _ = inputs()
    dense = int8.Int8Dense(torch.zeros_like(weight), bias, -4.0, 4.0)
    assert torch.allclose(dense(torch.zeros(3, 64)), bias.expand(3, -1), atol=1e-6)


def test_quantized_rounds_and_clamps() -> None:
    x = torch.tensor([[-10.0, -1.0, 0.0, 0.26, 1.0, 500.0]])
    assert int8.quantized(x, 0.5, 10).tolist() == [[0, 8, 10, 11, 12, 255]]


def test_ranges_leave_rare_rows_out_and_hold_zero() -> None:
    observations = Observations()
    x = torch.linspace(1.0, 2.0, 1000)[:, None].repeat(1, 8)
    x[0] = 900.0
    observations.note("layers.0.qkv", x)
    low, high = observations.range("layers.0.qkv")
    assert low == 0.0
    assert 1.9 < high < 2.1


def test_sites_that_see_few_rows_are_told_apart() -> None:
    observations = Observations()
    observations.note("layers.0.qkv", torch.zeros(100, 8))
    observations.note("layers.0.out", torch.zeros(5, 8))
    assert observations.mostly("layers.0.qkv")
    assert not observations.mostly("layers.0.out")
    assert not observations.mostly("layers.9.out")


@pytest.mark.parametrize("method", METHODS)
def test_observing_changes_nothing(method: str) -> None:
    x, weight, bias, residual = inputs()
    observations = Observations()
    dense = observing(observations, linear.plain)("layers.0.out", weight, bias)
    assert torch.equal(apply(dense, method, x, residual), apply(linear.PlainDense(weight, bias), method, x, residual))
    assert observations.count("layers.0.out") == len(x)


def pairs() -> list[Pair]:
    chosen = random.Random(3)
    lengths = [chosen.randint(4, 60) for _ in range(24)]
    made = [[2, *[chosen.randint(5, len(BERT_VOCABULARY) - 1) for _ in range(length - 2)], 3] for length in lengths]
    return [Pair(ids, [0] * (len(ids) // 2) + [1] * (len(ids) - len(ids) // 2)) for ids in made]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_minilm(tmp_path_factory.mktemp("quantization"))


@pytest.fixture(scope="module")
def reduced(folder: Path) -> Engine:
    if int8.unsupported() is not None:
        pytest.skip(str(int8.unsupported()))
    return select.build("torch-flat", checkpoint(folder, precision="int8"))


def test_the_int8_engine_is_close_to_float32(folder: Path, reduced: Engine) -> None:
    truth = torch.tensor(scored(select.build("torch-flat", checkpoint(folder)), pairs()))
    found = torch.tensor(scored(reduced, pairs()))
    assert not torch.equal(truth, found)
    assert torch.corrcoef(torch.stack([truth, found]))[0, 1] > 0.97


def test_int8_scores_do_not_depend_on_the_crowd(reduced: Engine) -> None:
    crowd = pairs()
    together = reduced.collect(reduced.compute(reduced.prepare(crowd)))
    alone = [reduced.collect(reduced.compute(reduced.prepare([pair])))[0] for pair in crowd]
    # Attention in float32 is summed in another order; that can move a value over the edge of a step.
    assert together == pytest.approx(alone, abs=0.02)


def test_calibration_is_deterministic(folder: Path, reduced: Engine) -> None:
    again = select.build("torch-flat", checkpoint(folder, precision="int8"))
    assert scored(again, pairs()) == scored(reduced, pairs())


def test_int8_says_why_it_is_not_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "unsupported", lambda: "the processor's 8-bit sums saturate")
    with pytest.raises(EngineUnsupported, match=r"saturate.*spec\.runtime\.precision"):
        select.build("torch-flat", checkpoint(folder, precision="int8"))


def test_sample_pairs_are_the_same_every_time_and_judge_what_did_not_calibrate(folder: Path) -> None:
    made = checkpoint(folder)
    used, judged = sample.calibration(made), [pair for group in sample.judged(made) for pair in group]
    assert used == sample.calibration(made)
    assert max(map(len, used + judged)) <= made.max_length
    assert not {tuple(pair.ids) for pair in used} & {tuple(pair.ids) for pair in judged}
    assert all(pair.ids.count(made.tokenizer.unk_token_id) * 2 < len(pair) for pair in used + judged)


def test_large_models_are_calibrated_on_fewer_pairs(folder: Path) -> None:
    large = checkpoint(folder, max_length=512)
    large.config |= {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}
    assert 0 < sum(map(len, sample.calibration(large))) <= sample.LEAST_TOKENS


def test_the_sample_has_short_and_long_texts_of_many_scripts() -> None:
    rows = sample.read()
    assert len(rows) == 32
    assert len({row["query"] for row in rows}) == 32
    assert sum(not row["query"].isascii() for row in rows) >= 8


def test_float8_rows_have_scales_of_their_own() -> None:
    x, *_ = inputs()
    values, scales = float8.by_row(x)
    assert values.dtype == torch.float8_e4m3fn
    assert scales.shape == (40, 1)
    # e4m3 has three bits after the leading one; below 2^-6 steps are absolute.
    assert ((values.float() * scales - x).abs() <= x.abs() / 16 + scales * 2**-10).all()
    assert torch.equal(float8.by_row(x[3:4])[0].float(), values[3:4].float())
    assert torch.isfinite(float8.by_row(torch.zeros(2, 16))[0].float()).all()


@pytest.mark.parametrize(
    ("device", "capability", "reason"),
    [
        ("cuda", (9, 0), None),
        ("cuda", (8, 9), None),
        ("cuda", (8, 6), "8.6"),
        ("cpu", None, "CUDA only"),
    ],
)
def test_where_float8_is_computed(device: str, capability: tuple[int, int] | None, reason: str | None) -> None:
    found = float8.unsupported(device, capability)
    assert found is None if reason is None else reason in str(found)


def test_float8_is_refused_on_the_cpu(folder: Path) -> None:
    with pytest.raises(EngineUnsupported, match="CUDA only"):
        select.build("torch-flat", checkpoint(folder, precision="float8"))


def test_weights_that_float8_cannot_take_come_from_elsewhere() -> None:
    weight = torch.randn(32, 24)
    assert isinstance(float8.layers(linear.plain)("layers.0.qkv", weight, None), linear.PlainDense)
    assert isinstance(float8.layers(linear.plain)("layers.0.qkv", weight[:, :16], None), float8.Float8Dense)
