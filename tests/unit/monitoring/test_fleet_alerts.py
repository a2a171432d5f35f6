"""The alerts on the fleet, played through by promtool: no gateway, no leader, no data, slow wakes, an empty pool."""

from functools import partial
from pathlib import Path

import pytest
from harness.promtool import HOME, Series, Span, alert, counter, gap, gauge, healthy_fleet, needs_promtool, restart, up
from harness.promtool import check as check_with_fleet

pytestmark = needs_promtool
check = partial(check_with_fleet, fleet=False)

WHO = {"namespace": "shop", "reranker": "products"}
DAY = 1440


def healthy(minutes: int, *missing: str) -> list[Series]:
    """What is there where all is well, so that a test sees nothing but what it is about."""
    series = healthy_fleet(minutes)
    return [one for one in series if not any(name in f"{one.name} {dict(one.labels).get('job')}" for name in missing)]


DOWN = alert("RerankGatewayDown", **HOME)
HEADLESS = alert("RerankOperatorWithoutLeader", **HOME)


def test_a_fleet_whose_gateways_do_not_answer_pages_within_four_minutes(tmp_path: Path):
    series = [up("gateway", (60, 1), (30, 0), (60, 1)), up("gateway", (60, 1), (30, 0), (60, 1), pod="2")]
    check(tmp_path, series + healthy(200, "gateway"), {60: [], 64: [DOWN], 89: [DOWN], 97: []}, end=140)


def test_gateways_that_are_gone_page_for_a_day_and_are_a_ticket_then(tmp_path: Path):
    """Nothing of them is scraped any more, which is no reason for the outage to be over."""
    missing = alert("RerankTelemetryMissing", missing="gateways")
    series = [up("gateway", (60, 1)), *healthy(1700, "gateway")]
    seen = {60: [], 70: [DOWN], 180: [DOWN], 1490: [DOWN], 1520: [missing], 1600: [missing]}
    check(tmp_path, series, seen, end=1650, tick=5)


def test_gateways_that_do_not_come_back_page_for_a_day(tmp_path: Path):
    series = [up("gateway", (60, 1), (600, 0)), *healthy(700, "gateway")]
    check(tmp_path, series, {60: [], 70: [DOWN], 180: [DOWN], 650: [DOWN]}, end=655, tick=5)


def test_gateways_that_never_were_up_are_a_ticket(tmp_path: Path):
    missing = alert("RerankTelemetryMissing", missing="gateways")
    check(tmp_path, [up("gateway", (120, 0)), *healthy(120, "gateway")], {14: [], 17: [missing]}, end=110)


def ready(*spans: Span | tuple[int, float], pod: str = "1") -> Series:
    return gauge("rerank_gateway_ready", *spans, **HOME, pod=pod)


def test_gateways_that_run_and_are_not_ready_page(tmp_path: Path):
    """Their rights were taken away, or the CRD: each is scraped as if nothing were wrong."""
    series = [up("gateway", (160, 1), pod="2"), *(ready((60, 1), (30, 0), (60, 1), pod=pod) for pod in ("1", "2"))]
    said = {
        "summary": "no gateway in rerank-system is ready",
        "description": "Gateways run in rerank-system, and none has been ready for 3 minutes. "
        "Requests of all Rerankers go through them.",
        "look": "kubectl -n rerank-system get pods -l app.kubernetes.io/component=gateway -o wide",
        "runbook_url": "docs/runbooks/RerankGatewayDown.md",
    }
    annotations = [(70, "RerankGatewayDown", [({**HOME, "severity": "page"}, said)])]
    seen = {60: [], 64: [DOWN], 89: [DOWN], 97: []}
    check(tmp_path, series + healthy(200), seen, end=140, annotations=annotations)


def test_gateways_that_are_not_ready_and_then_gone_page_once(tmp_path: Path):
    series = [up("gateway", (80, 1), (60, 0)), ready((60, 1), (20, 0))]
    check(tmp_path, series + healthy(200, "gateway"), {60: [], 64: [DOWN], 82: [DOWN], 120: [DOWN]}, end=130)


@pytest.mark.parametrize(
    ("what", "series"),
    [
        ("one of two", [up("gateway", (120, 1)), up("gateway", (60, 1), (60, 0), pod="2")]),
        ("a rolling update", [up("gateway", (60, 1)), up("gateway", gap(58, 0), (60, 1), pod="2")]),
        ("two failed scrapes", [up("gateway", (60, 1), (2, 0), (58, 1))]),
        ("one of two is not ready", [up("gateway", (120, 1)), ready((120, 1)), ready((60, 1), (60, 0), pod="2")]),
        ("a start", [up("gateway", (120, 1)), ready((2, 0), (118, 1))]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gateways_are_silent(tmp_path: Path, what: str, series: list[Series]):
    check(tmp_path, series + healthy(130, "gateway"), {62: [], 115: []}, end=117)


def test_a_gap_of_all_scrapes_is_silent(tmp_path: Path):
    """Prometheus itself was away; what it finds when it comes back is what was there."""
    series = [Series(one.name, one.labels, ((Span(60, 1)), gap(2, 1), Span(60, 1)), gauge=True) for one in healthy(1)]
    check(tmp_path, series, {61: [], 63: [], 120: []}, end=120)


# --- keys ---

REFUSED = alert("RerankKeysRefused", **HOME)


def answers(code: str, *spans: Span | tuple[int, float], pod: str = "1", **of: str) -> Series:
    """As they are scraped: where no Reranker is known the labels are gone, that of the gateway's namespace too."""
    return counter("rerank_gateway_requests_total", *spans, **of, code=code, pod=pod)


def test_keys_that_are_all_refused_are_a_ticket_within_twenty_minutes(tmp_path: Path):
    """The Secret is emptied after an hour and repaired half an hour later; both gateways read it."""
    series = [
        answers("401", (60, 0), (30, 30), (60, 0)),
        answers("401", (60, 0), (30, 30), (60, 0), pod="2"),
        answers("200", (60, 30), (30, 0), (60, 30), **WHO, revision="r1"),
        answers("200", (60, 30), (30, 0), (60, 30), pod="2", **WHO, revision="r1"),
        # Load balancers ask /healthz, which needs no key.
        answers("200", (150, 12)),
        up("gateway", (150, 1), pod="2"),
    ]
    said = {
        "summary": "gateways in rerank-system refuse every API key",
        "description": "Gateways in rerank-system have answered 600 requests of the last 10 minutes with 401 and not "
        "let any other one through.",
        "look": "kubectl -n rerank-system logs -l app.kubernetes.io/component=gateway --tail=-1 --prefix"
        " | grep 'API keys'",
        "runbook_url": "docs/runbooks/RerankKeysRefused.md",
    }
    annotations = [(85, "RerankKeysRefused", [({**HOME, "severity": "ticket"}, said)])]
    seen = {60: [], 70: [], 76: [REFUSED], 90: [REFUSED], 97: []}
    check(tmp_path, series + healthy(200), seen, end=145, annotations=annotations)


@pytest.mark.parametrize(
    ("what", "series"),
    [
        ("one client of two has a bad key", [answers("401", (60, 30)), answers("200", (60, 1), **WHO, revision="r1")]),
        ("its Reranker has no worker", [answers("401", (60, 30)), answers("503", (60, 1), **WHO)]),
        ("few ask", [answers("401", (60, 1))]),
        ("nobody asks", [answers("401", (60, 0)), answers("200", (60, 0), **WHO, revision="r1")]),
        ("only /healthz is asked", [answers("200", (60, 12))]),
        ("no data", []),
        ("for 10 minutes", [answers("401", (20, 0), (10, 30), (30, 0)),
                            answers("200", (20, 30), (10, 0), (30, 30), **WHO, revision="r1")]),
        ("one gateway of two has read it", [answers("401", (60, 30)), up("gateway", (60, 1), pod="2"),
                                            answers("200", (60, 30), pod="2", **WHO, revision="r1")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_keys_are_silent(tmp_path: Path, what: str, series: list[Series]):
    check(tmp_path, series + healthy(60), {40: [], 59: []}, end=59)


# --- operators ---


def test_nobody_leads_is_a_ticket(tmp_path: Path):
    leads = gauge("rerank_operator_leader", (60, 1), (30, 0), (60, 1), **HOME, pod="1")
    check(tmp_path, [leads, *healthy(200, "leader")], {63: [], 67: [HEADLESS], 100: []}, end=140)


def test_operators_that_are_gone_are_a_ticket(tmp_path: Path):
    series = [up("operator", (60, 1)), gauge("rerank_operator_leader", (60, 1), **HOME, pod="1")]
    check(tmp_path, series + healthy(200, "operator", "leader"), {60: [], 67: [HEADLESS], 100: [HEADLESS]}, end=110)


def test_operators_that_are_gone_stay_a_ticket_for_a_day(tmp_path: Path):
    missing = alert("RerankTelemetryMissing", missing="operators")
    series = [up("operator", (60, 1)), gauge("rerank_operator_leader", (60, 1), **HOME, pod="1")]
    seen = {60: [], 70: [HEADLESS], 1490: [HEADLESS], 1520: [missing]}
    check(tmp_path, series + healthy(1700, "operator", "leader"), seen, end=1600, tick=5)


def test_a_fail_over_is_silent(tmp_path: Path):
    series = [
        gauge("rerank_operator_leader", (60, 1), (60, 0), **HOME, pod="1"),
        gauge("rerank_operator_leader", (61, 0), (60, 1), **HOME, pod="2"),
    ]
    check(tmp_path, series + healthy(130, "leader"), {62: [], 110: []}, end=118)


def test_where_nothing_was_ever_scraped_tickets_say_so(tmp_path: Path):
    missing = [alert("RerankTelemetryMissing", missing=what) for what in ("gateways", "operators")]
    check(tmp_path, [], {14: [], 16: missing, 60: missing}, end=60)


def test_workers_that_serve_and_are_not_scraped_are_a_ticket(tmp_path: Path):
    missing = alert("RerankTelemetryMissing", **WHO, missing="workers")
    series = [
        gauge("rerank_gateway_endpoints", (120, 2), **WHO, revision="r1", pod="g1"),
        gauge("rerank_worker_requests_in_flight", (30, 0), gap(40, 0), (50, 0), **WHO, revision="r1", pod="w1"),
        *healthy(130),
    ]
    # What was scraped last is taken for what is for 5 minutes.
    check(tmp_path, series, {45: [], 52: [missing], 80: []}, end=118)


def runs(result: str, *spans: Span | tuple[int, float]) -> Series:
    return counter("rerank_operator_golden_runs_total", *spans, **WHO, result=result, pod="1")


@pytest.mark.parametrize(
    ("what", "failed", "ok", "fires"),
    [
        ("it cannot be ranked", ((60, 0), (120, 0.1)), ((180, 0),), True),
        ("now and then", ((60, 0), (120, 0.1)), ((180, 0.05),), False),
        ("twice", ((60, 0), (20, 0.1), (100, 0)), ((180, 0),), False),
        ("no worker is there", ((180, 0),), ((180, 0),), False),
        ("another operator leads", ((60, 0), restart(120, 0)), ((60, 0.1), restart(120, 0)), False),
    ],
)
def test_golden_sets_that_fail(tmp_path: Path, what: str, failed: tuple, ok: tuple, fires: bool):
    missing = [alert("RerankTelemetryMissing", **WHO, missing="golden set")] if fires else []
    check(tmp_path, [runs("failed", *failed), runs("ok", *ok), *healthy(200)], {80: [], 150: missing}, end=175)


def test_a_golden_set_that_failed_in_maintenance_is_no_ticket_when_it_is_over(tmp_path: Path):
    series = [runs("failed", (60, 0), (60, 0.1), (60, 0)), runs("ok", (180, 0)), *healthy(200)]
    works = gauge("rerank_gateway_maintenance", (60, 0), (60, 1), (60, 0), **WHO, pod="g1")
    check(tmp_path, [*series, works], {110: [], 150: []}, end=175)


# --- wakes and pools ---


def wakes(way: str, *spans: tuple[int, float, float]) -> list[Series]:
    """Spans of (minutes, wakes an hour, seconds of each)."""
    return [
        counter("rerank_operator_wake_seconds_count", *((m, n / 60) for m, n, _ in spans), **HOME, way=way, pod="1"),
        counter("rerank_operator_wake_seconds_sum", *((m, n * s / 60) for m, n, s in spans), **HOME, way=way, pod="1"),
    ]


@pytest.mark.parametrize(
    ("what", "series", "fires"),
    [
        ("cold starts of 40 s instead of 10", wakes("cold", (2 * DAY, 2, 10), (600, 2, 40)), ["cold"]),
        ("warm ones of 0.5 s instead of 0.2", wakes("warm", (2 * DAY, 2, 0.2), (600, 2, 0.5)), []),
        ("few wakes", wakes("cold", (2 * DAY, 2, 10), (600, 0.2, 40)), []),
        ("no reference", wakes("cold", (600, 0, 0), (600, 2, 40)), []),
        ("a day without any", wakes("cold", (2 * DAY, 2, 10), (600, 0, 0)), []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_slow_wakes(tmp_path: Path, what: str, series: list[Series], fires: list[str]):
    seen = [alert("RerankColdStartsSlow", **HOME, way=way) for way in fires]
    check(tmp_path, series + healthy(2 * DAY + 700), {2 * DAY + 570: seen}, end=2 * DAY + 600, tick=5)


def pool(free: float, not_ready: float, loaned: float, minutes: int = 60) -> list[Series]:
    states = {"free": free, "not_ready": not_ready, "loaned": loaned}
    return [
        gauge(
            "rerank_operator_warm_pods",
            (20, 1),
            (minutes, count),
            namespace="shop",
            pool="shared",
            state=state,
            pod="1",
        )
        for state, count in states.items()
    ]


@pytest.mark.parametrize(
    ("what", "series", "fires"),
    [
        ("none gets ready", pool(0, 2, 0), True),
        ("all are lent", pool(0, 0, 3), False),
        ("one is free", pool(1, 2, 0), False),
        ("of size 0", pool(0, 0, 0), False),
        ("for 10 minutes", pool(0, 2, 0, minutes=10), False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_warm_pools(tmp_path: Path, what: str, series: list[Series], fires: bool):
    empty = [alert("RerankWarmPoolEmpty", namespace="shop", pool="shared")] if fires else []
    check(tmp_path, series + healthy(90), {33: [], 40: empty}, end=75)
