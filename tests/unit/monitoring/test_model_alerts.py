"""The alerts on models and capacity, played through by promtool: against themselves as they were, and by revision."""

from pathlib import Path

import pytest
from harness.promtool import Series, Span, alert, check, counter, gap, gauge, needs_promtool, restart

pytestmark = needs_promtool

WHO = {"namespace": "shop", "reranker": "products"}
R1, R2 = {**WHO, "revision": "r1"}, {**WHO, "revision": "r2"}
HOUR, DAY = 60, 1440
Spans = tuple[Span | tuple[int, float], ...]


def maintenance(*spans: tuple[int, float]) -> list[Series]:
    return [gauge("rerank_gateway_maintenance", *spans, **WHO, pod="g1")]


# --- ranking quality ---

LOW = alert("RerankRankingQualityLow", **R1, measure="ndcg@10")


def golden(*quality: tuple[int, float], pod: str = "o1", minimum: float = 0.9) -> list[Series]:
    minutes = sum(span[0] for span in quality)
    return [
        gauge("rerank_operator_golden_quality", *quality, **R1, measure="ndcg@10", pod=pod),
        gauge("rerank_operator_golden_quality", (minutes, 0.3), **R1, measure="mrr", pod=pod),
        gauge("rerank_operator_golden_minimum", (minutes, minimum), **WHO, measure="ndcg@10", pod=pod),
    ]


def test_a_ranking_below_its_minimum_is_a_ticket_by_the_measure_that_was_promised(tmp_path: Path):
    series = golden((60, 0.95), (60, 0.85), (60, 0.95))
    check(tmp_path, series, {60: [], 67: [LOW], 125: [LOW], 135: []}, end=175)


def test_another_leader_does_not_repeat_it(tmp_path: Path):
    """The other operator tells what the status holds, a few minutes later."""
    successor = [
        Series(one.name, one.labels, (gap(64, 0), *one.spans), gauge=True) for one in golden((60, 0.85), pod="o2")
    ]
    check(tmp_path, golden((60, 0.85)) + successor, {30: [LOW], 100: [LOW]}, end=120)


def test_ranking_quality_is_silent_in_maintenance_and_without_a_minimum(tmp_path: Path):
    check(tmp_path, golden((60, 0.85)) + maintenance((60, 1)), {50: []}, end=59)
    check(tmp_path, golden((60, 0.85))[:2], {50: []}, end=59)


# --- calibration ---

WORSE = alert("RerankCalibrationWorse", **R1)


def feedback(*spans: tuple[int, float, float, float]) -> list[Series]:
    """Spans of (minutes, labels a minute, share that is relevant, mean score), all in one bin."""

    def of(what: str, rate: int) -> Series:
        rates = [(span[0], span[1] * (1, span[2], span[3])[rate]) for span in spans]
        return counter(f"rerank_gateway_feedback_{what}_total", *rates, **R1, bin="0.7", pod="g1")

    return [of("labels", 0), of("relevant", 1), of("scores", 2)]


def test_scores_that_mean_less_are_a_ticket(tmp_path: Path):
    """0.75 was relevant in 75 % of the cases, and is in 65 % now. The day's mean is 0.05 off after half of it."""
    series = feedback((4 * DAY, 2, 0.75, 0.75), (DAY, 2, 0.65, 0.75), (2 * DAY, 2, 0.75, 0.75))
    seen = {4 * DAY: [], 4 * DAY + 600: [], 4 * DAY + 840: [WORSE], 5 * DAY: [WORSE], 6 * DAY: []}
    check(tmp_path, series, seen, end=6 * DAY, tick=30)


@pytest.mark.parametrize(
    ("what", "spans"),
    [
        ("always as badly calibrated", ((5 * DAY, 2, 0.4, 0.75),)),
        ("too few labels", ((4 * DAY, 0.6, 0.75, 0.75), (DAY, 0.6, 0.4, 0.75))),
        ("no reference", ((DAY, 2, 0.4, 0.75),)),
    ],
)
def test_calibration_is_silent(tmp_path: Path, what: str, spans: tuple[tuple[int, float, float, float], ...]):
    end = sum(span[0] for span in spans)
    check(tmp_path, feedback(*spans), {end - 30: []}, end=end, tick=30)


def test_a_new_model_without_its_own_temperature_is_told_of_by_the_golden_set(tmp_path: Path):
    series = [
        gauge("rerank_operator_golden_calibration", (300, 0.03), **R1, measure="ece", pod="o1"),
        gauge("rerank_operator_golden_calibration", gap(300, 0), (300, 0.12), **R2, measure="ece", pod="o1"),
        gauge("rerank_operator_golden_calibration", (300, 0.1), gap(300, 0), **R1, measure="brier", pod="o1"),
    ]
    check(tmp_path, series, {299: [], 320: [alert("RerankCalibrationWorse", **R2)]}, end=590)


# --- drift ---

DRIFT = alert("RerankScoreDrift", **R1)
BINS = [f"{twentieth / 20:.2f}" for twentieth in range(20)]


def scores(*spans: tuple[int, float, dict[str, float]], pod: str = "w1", **of: str) -> list[Series]:
    """Spans of (minutes, scores a minute, share of each bin)."""
    return [
        counter(
            "rerank_worker_scores_total",
            *((minutes, rate * shares.get(edge, 0)) for minutes, rate, shares in spans),
            **(of or R1),
            bin=edge,
            pod=pod,
        )
        for edge in BINS
    ]


USUAL = {"0.00": 0.4, "0.05": 0.2, "0.50": 0.2, "0.95": 0.2}
SHIFTED = {"0.00": 0.2, "0.05": 0.4, "0.50": 0.2, "0.95": 0.2}
MOVED = {"0.20": 0.6, "0.50": 0.2, "0.95": 0.2}


def test_a_shift_of_the_scores_is_a_ticket(tmp_path: Path):
    """Half of a bin of 40 % to one of 20 %: 0.277 once all 6 hours are of the new kind."""
    series = scores((3 * DAY, 10, USUAL), (DAY, 10, SHIFTED), (DAY, 10, USUAL))
    psi = [({"__name__": "rerank:score_psi", **R1}, 0.2772588722239781)]
    seen = {3 * DAY: [], 3 * DAY + 300: [], 3 * DAY + 570: [DRIFT], 4 * DAY: [DRIFT], 5 * DAY - 400: []}
    check(tmp_path, series, seen, end=5 * DAY - 400, tick=30, values=[(3 * DAY + 480, "rerank:score_psi", psi)])


@pytest.mark.parametrize(
    ("what", "series"),
    [
        ("low traffic", scores((3 * DAY, 2, USUAL), (DAY, 2, MOVED))),
        ("a deploy", scores((3 * DAY, 10, USUAL), (DAY, 0, USUAL))
         + scores((3 * DAY, 0, MOVED), (DAY, 10, MOVED), pod="w2", **R2)),
        ("an odd job of an hour", scores((3 * DAY, 10, USUAL), (60, 10, MOVED), (DAY, 10, USUAL))),
        ("a free warm pod", scores((3 * DAY, 10, USUAL), (DAY, 10, MOVED), namespace="shop", warm_pool="shared")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_drift_is_silent(tmp_path: Path, what: str, series: list[Series]):
    check(tmp_path, series, {3 * DAY + 600: []}, end=4 * DAY, tick=30)


def test_drift_is_silent_where_workers_restart_and_a_scrape_is_missed(tmp_path: Path):
    def span(minutes: int, edge: str) -> Spans:
        rate = 10 * USUAL.get(edge, 0)
        return (3 * DAY, rate), restart(minutes, rate), gap(60, rate), (minutes, rate)

    series = [counter("rerank_worker_scores_total", *span(300, edge), **R1, bin=edge, pod="w1") for edge in BINS]
    check(tmp_path, series, {3 * DAY + 360: []}, end=3 * DAY + 600, tick=30)


# --- truncation ---

CUT = alert("RerankTruncation", **WHO)


def truncated(*spans: tuple[int, float, float]) -> list[Series]:
    """Spans of (minutes, requests a minute, share that is cut)."""
    return [
        counter("rerank_gateway_request_duration_seconds_count", *((m, r) for m, r, _ in spans), **R1, pod="g1"),
        counter("rerank_gateway_truncated_requests_total", *((m, r * s) for m, r, s in spans), **R1, pod="g1"),
    ]


@pytest.mark.parametrize(
    ("what", "spans", "seen"),
    [
        (
            "more than twice as many",
            ((DAY, 60, 0.1), (300, 60, 0.3), (300, 60, 0.1)),
            {1500: [], 1600: [CUT], 1980: []},
        ),
        ("never before", ((DAY, 60, 0), (300, 60, 0.3), (300, 60, 0)), {1440: [], 1520: [CUT], 1980: []}),
        ("always many", ((DAY, 60, 0.5), (300, 60, 0.6)), {1740: []}),
        ("few", ((DAY, 60, 0.01), (300, 60, 0.09)), {1740: []}),
        ("low traffic", ((DAY, 60, 0.01), (300, 1, 1)), {1740: []}),
        ("young", ((600, 1, 1),), {600: []}),
    ],
)
def test_truncation(tmp_path: Path, what: str, spans: tuple[tuple[int, float, float], ...], seen: dict[int, list]):
    check(tmp_path, truncated(*spans), seen, end=sum(span[0] for span in spans), tick=10)


# --- workers that differ ---


def worker(pod: str, spans: Spans, model: str = "aa", tokenizer: str = "bb", **labels: str) -> Series:
    sums = {"model_sha256": model, "tokenizer_sha256": tokenizer}
    return gauge("rerank_worker_info", *spans, **{**R1, **labels}, **sums, pod=pod)


def test_workers_of_one_revision_with_other_tokenizers_are_a_ticket(tmp_path: Path):
    series = [worker("w1", ((60, 1),)), worker("w2", (gap(20, 0), (25, 1)), tokenizer="cc")]
    check(tmp_path, series, {20: [], 37: [alert("RerankWorkersDiffer", **R1)], 55: []}, end=58)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("of another revision", worker("w2", ((60, 1),), model="cc", revision="r2")),
        ("a warm pod", worker("w2", ((60, 1),), model="cc", warm_pool="shared")),
        ("loading", worker("w2", ((60, 1),), model="", tokenizer="")),
        ("replaced", worker("w2", ((12, 1),), model="cc")),
    ],
)
def test_workers_that_differ_are_silent(tmp_path: Path, what: str, other: Series):
    check(tmp_path, [worker("w1", ((60, 1),)), other], {40: []}, end=59)


# --- canaries ---

BACK = alert("RerankCanaryRolledBack", **R2)


def phase(name: str, *spans: Span | tuple[int, float], pod: str = "o1") -> Series:
    return gauge("rerank_operator_rollout_phase", *spans, **R2, phase=name, pod=pod)


def test_a_canary_that_was_rolled_back_is_a_ticket_until_something_is_done(tmp_path: Path):
    series = [
        phase("Traffic", (30, 1)),
        phase("RolledBack", gap(29, 0), (60, 1)),
        phase("Starting", gap(89, 0), (30, 1)),
    ]
    check(tmp_path, series, {28: [], 32: [BACK], 80: [BACK], 100: []}, end=118)


def test_another_leader_does_not_roll_it_back_again(tmp_path: Path):
    series = [phase("RolledBack", (30, 1)), phase("RolledBack", gap(33, 0), (60, 1), pod="o2")]
    check(tmp_path, series, {60: [BACK]}, end=90)


def test_a_canary_that_is_forgotten_is_a_ticket(tmp_path: Path):
    series = [phase("Paused", (60, 1)), phase("Traffic", gap(59, 0), (60, 1))]
    check(tmp_path, series, {28: [], 33: [alert("RerankCanaryHeld", **R2)], 70: []}, end=110)


def test_a_canary_that_goes_its_way_is_silent(tmp_path: Path):
    series = [phase("Traffic", (60, 1)), phase("Promoted", gap(59, 0), (60, 1))]
    check(tmp_path, series, {50: [], 110: []}, end=118)


# --- memory ---


def recoveries(*spans: Span | tuple[int, float]) -> Series:
    return counter("rerank_worker_out_of_memory_recoveries_total", *spans, **R1, pod="w1")


def test_batches_that_go_on_not_fitting_are_a_ticket(tmp_path: Path):
    series = [recoveries((60, 0), (3, 1), (120, 0))]
    check(tmp_path, series, {61: [], 64: [alert("RerankOutOfMemory", **R1)], 140: []}, end=180)


def test_a_worker_that_finds_its_budget_is_silent(tmp_path: Path):
    check(tmp_path, [recoveries((60, 0), (2, 1), (60, 0), restart(60, 0))], {62: [], 100: []}, end=180)


def killed(reason: str) -> list[Series]:
    container = {"namespace": "shop", "pod": "w1", "container": "worker"}
    return [
        gauge("rerank_worker_requests_in_flight", (30, 0), gap(3, 0), (90, 0), **R1, pod="w1"),
        counter("kube_pod_container_status_restarts_total", (30, 0), (1, 1), (90, 0), **container),
        gauge(
            "kube_pod_container_status_last_terminated_reason", gap(31, 0), (90, 1), **container, reason=reason
        ),
    ]  # fmt: skip


def test_a_worker_that_was_killed_for_its_memory_is_a_ticket(tmp_path: Path):
    check(tmp_path, killed("OOMKilled"), {30: [], 35: [alert("RerankOutOfMemory", **R1)], 110: []}, end=118)
    check(tmp_path, killed("Error"), {35: []}, end=110)


# --- idle workers ---

IDLE = alert("RerankIdleReplicas", **WHO)


def workers(minutes: int, count: int, busy: Spans, minimum: float) -> list[Series]:
    """``busy``: seconds of computing a minute, of each."""
    series = [gauge("rerank_operator_minimum_replicas", (minutes, minimum), **WHO, pod="o1")]
    for number in range(count):
        series.append(gauge("rerank_worker_requests_in_flight", (minutes, 0), **R1, pod=f"w{number}"))
        series.append(counter("rerank_worker_engine_time_seconds_sum", *busy, **R1, pod=f"w{number}"))
    return series


def test_idle_workers_that_nothing_asks_for_are_a_ticket_within_the_hour(tmp_path: Path):
    series = workers(240, 2, ((60, 30), (120, 0.5), (60, 30)), minimum=0)
    check(tmp_path, series, {60: [], 115: [], 125: [IDLE], 180: [IDLE], 190: []}, end=239)


@pytest.mark.parametrize(
    ("what", "series"),
    [
        ("asked for by minReplicas", workers(120, 2, ((120, 0),), minimum=2)),
        ("one request a minute keeps the one that it needs", workers(120, 1, ((120, 0.5),), minimum=0)),
        ("one in a long idleTimeout", workers(120, 1, ((120, 0),), minimum=0)),
        ("used a little", workers(120, 2, ((120, 4),), minimum=0)),
        ("idle for 20 minutes, then at zero", workers(20, 2, ((20, 0),), minimum=0)),
        ("nothing is known of what is asked for", workers(120, 2, ((120, 0),), minimum=0)[1:]),
        ("a canary is judged", [*workers(120, 2, ((120, 0),), minimum=1), phase("Mirror", (120, 1))]),
        ("maintenance", workers(120, 2, ((120, 0),), minimum=0) + maintenance((120, 1))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_idle_is_silent(tmp_path: Path, what: str, series: list[Series]):
    check(tmp_path, series, {100: []}, end=119)


# --- cost ---

DEAR = alert("RerankCostAnomaly", **WHO)


def spent(*spans: tuple[int, float, float], rollout: Series | None = None) -> list[Series]:
    """Spans of (minutes, workers, pairs a minute)."""
    own = {"revision": "r1", "source": "own", "pod": "o1"}
    return [
        counter("rerank_operator_replica_seconds_total", *((m, 60 * w) for m, w, _ in spans), **WHO, **own),
        counter("rerank_worker_pairs_total", *((m, p) for m, _, p in spans), **R1, pod="w1"),
        *([rollout] if rollout else ()),
    ]


NIGHT_AND_DAY = ((720, 4, 4000), (720, 1, 300)) * 3


@pytest.mark.parametrize(
    ("what", "series", "seen", "end"),
    [
        ("three times the workers for the same", spent((2 * DAY, 2, 1000), (240, 6, 1000), (240, 2, 1000)),
         {2880: [], 2970: [DEAR], 3090: [DEAR], 3240: []}, 3360),
        ("nights", spent(*NIGHT_AND_DAY), {3 * DAY: []}, 3 * DAY),
        ("twice the traffic and workers", spent((2 * DAY, 2, 1000), (240, 4, 2000)), {3000: []}, 3120),
        ("the traffic goes", spent((2 * DAY, 2, 1000), (240, 2, 100)), {3000: []}, 3120),
        ("few inferences", spent((2 * DAY, 2, 10), (240, 6, 10)), {3000: []}, 3120),
        ("young", spent((600, 1, 1000), (240, 6, 1000)), {800: []}, 840),
        ("a canary", spent((2 * DAY, 2, 1000), (240, 6, 1000), rollout=phase("Traffic", gap(2 * DAY, 0), (240, 1))),
         {3000: []}, 3110),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_cost(tmp_path: Path, what: str, series: list[Series], seen: dict[int, list], end: int):
    check(tmp_path, series, seen, end=end, tick=30)


# --- after a maintenance ---


@pytest.mark.parametrize(
    ("what", "series", "calm", "worked", "tick"),
    [
        ("batches that did not fit", [recoveries((60, 0), (30, 1), (120, 0))], 60, 30, 1),
        ("long documents", truncated((DAY, 60, 0.1), (60, 60, 0.9), (120, 60, 0.1)), DAY, 60, 10),
        ("workers on top", spent((DAY + 60, 2, 1000), (60, 12, 1000), (120, 2, 1000)), DAY + 60, 60, 10),
        ("a trial of queries", scores((3 * DAY, 10, USUAL), (300, 10, MOVED), (540, 10, USUAL)), 3 * DAY, 300, 30),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_was_in_maintenance_is_no_ticket_when_it_is_over(
    tmp_path: Path, what: str, series: list[Series], calm: int, worked: int, tick: int
):
    """Windows of hours still see it."""
    end = sum(span.minutes for span in series[0].spans)
    series = [*series, *maintenance((calm, 0), (worked, 1), (end - calm - worked, 0))]
    check(tmp_path, series, {end - tick: []}, end=end - tick, tick=tick)
