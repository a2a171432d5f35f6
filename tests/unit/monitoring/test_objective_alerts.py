"""The alerts on objectives, played through by promtool: when they fire, when they are silent, how often they page."""

from pathlib import Path

import pytest
from harness.promtool import Series, Span, alert, check, counter, gap, gauge, needs_promtool, restart

pytestmark = needs_promtool

WHO = {"namespace": "shop", "reranker": "products"}
Spans = tuple[Span | tuple[int, float], ...]


def indicator(sli: str, requests: Spans, bad: Spans, revision: str = "r1", pod: str = "g1") -> list[Series]:
    """Both counters of one sli in one gateway; ``requests`` and ``bad`` have spans of the same lengths."""
    labels = {**WHO, "revision": revision, "sli": sli, "pod": pod}
    pairs = [(_as_span(all_), _as_span(few)) for all_, few in zip(requests, bad, strict=True)]
    good = [Span(a.minutes, a.rate - b.rate, a.seen, a.restarted) for a, b in pairs]
    return [
        counter("rerank_gateway_sli_requests_total", *requests, **labels),
        counter("rerank_gateway_sli_good_requests_total", *good, **labels),
    ]


def _as_span(span: Span | tuple[int, float]) -> Span:
    return span if isinstance(span, Span) else Span(*span)


def promised(minutes: int, *maintenance: tuple[int, float], availability: float = 0.999) -> list[Series]:
    return [
        gauge("rerank_gateway_objective_ratio", (minutes, availability), **WHO, sli="availability", pod="g1"),
        gauge("rerank_gateway_objective_ratio", (minutes, 0.95), **WHO, sli="latency", pod="g1"),
        gauge("rerank_gateway_maintenance", *(maintenance or [(minutes, 0)]), **WHO, pod="g1"),
    ]


def burn(name: str, sli: str = "availability") -> dict[str, str]:
    return dict(alert(name, **WHO, sli=sli))


FAST = burn("RerankErrorBudgetBurn")
DAY = burn("RerankDayBudgetBurn")
SLOW = burn("RerankErrorBudgetSlowBurn")


def test_an_outage_pages_once_within_two_minutes_and_ends(tmp_path: Path):
    calm, outage, after = 120, 5, 300
    series = indicator(
        "availability", ((calm, 600), (outage, 600), (after, 600)), ((calm, 0), (outage, 600), (after, 0))
    )
    seen = {120: [], 122: [FAST], 155: [FAST], 161: [], 200: [], 420: []}
    check(tmp_path, series + promised(430), seen, end=425)


def test_two_percent_of_errors_page_within_the_hour(tmp_path: Path):
    """20 times the budget: 43 minutes of it are 14.4 times of an hour."""
    series = indicator("availability", ((90, 600), (100, 600), (60, 600)), ((90, 0), (100, 12), (60, 0)))
    check(tmp_path, series + promised(260), {125: [], 136: [FAST], 212: [FAST], 220: []}, end=245)


def test_one_in_a_hundred_pages_by_the_slow_row(tmp_path: Path):
    """10 times the budget is less than 14.4, and 6 hours of it are more than 6 after 3.6 hours."""
    series = indicator("availability", ((400, 600), (300, 600), (120, 600)), ((400, 0), (300, 6), (120, 0)))
    check(tmp_path, series + promised(830), {610: [], 620: [FAST], 710: [FAST], 740: []}, end=815)


@pytest.mark.parametrize(
    ("what", "series"),
    [
        ("9 of 300 requests in an hour", indicator("availability", ((60, 5), (60, 5)), ((60, 0), (60, 0.15)))),
        ("no traffic", indicator("availability", ((120, 0),), ((120, 0),))),
        ("no data", []),
        ("a blip of 30 failures among 60,000", indicator("availability", ((60, 600), (1, 600), (59, 600)),
                                                          ((60, 0), (1, 30), (59, 0)))),
        ("a gateway restarts", indicator("availability", ((60, 600), restart(60, 600)), ((60, 0), restart(60, 0)))),
        ("a gap of scrapes", indicator("availability", ((60, 600), gap(12, 600), (48, 600)),
                                       ((60, 0), gap(12, 0), (48, 0)))),
        ("a deploy", indicator("availability", ((60, 600), (60, 0)), ((60, 0), (60, 0)))
         + indicator("availability", ((60, 0), (60, 600)), ((60, 0), (60, 0)), revision="r2")),
        ("a new gateway takes over", indicator("availability", ((60, 600), gap(60, 0)), ((60, 0), gap(60, 0)))
         + indicator("availability", (gap(59, 0), restart(61, 600)), (gap(59, 0), restart(61, 0)), pod="g2")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_silent(tmp_path: Path, what: str, series: list[Series]):
    check(tmp_path, series + promised(130), {119: []}, end=125)


def test_a_deleted_reranker_is_silent_though_its_last_requests_failed(tmp_path: Path):
    """Its counters stay for a while; what it promised is gone at once."""
    series = indicator("availability", ((60, 600), (30, 600)), ((60, 0), (30, 600)))
    check(tmp_path, series + promised(60), {62: [], 90: []}, end=100)


def test_a_gap_of_scrapes_in_an_outage_does_not_page_twice(tmp_path: Path):
    spans: Spans = ((60, 600), gap(6, 600), (20, 600), (60, 600))
    bad: Spans = ((60, 300), gap(6, 300), (20, 300), (60, 0))
    check(tmp_path, indicator("availability", spans, bad) + promised(200), {66: [FAST], 110: [FAST], 122: []}, end=146)


def test_silent_in_maintenance_and_for_what_happened_in_it(tmp_path: Path):
    series = indicator("availability", ((60, 600), (60, 600), (300, 600)), ((60, 0), (60, 300), (300, 0)))
    check(tmp_path, series + promised(430, (55, 0), (65, 1), (310, 0)), {100: [], 121: [], 200: []}, end=420, late=True)


def test_an_outage_that_outlasts_its_maintenance_pages_soon_after(tmp_path: Path):
    series = indicator("availability", ((60, 600), (120, 600)), ((60, 0), (120, 300)))
    check(tmp_path, series + promised(200, (60, 0), (60, 1), (80, 0)), {119: [], 132: [FAST]}, end=175)


def test_a_total_outage_pages_where_the_budget_is_a_tenth(tmp_path: Path):
    """14.4 times a budget of 10 % cannot be burnt."""
    series = indicator("availability", ((360, 600), (70, 600)), ((360, 0), (70, 600)))
    check(tmp_path, series + promised(440, availability=0.9), {410: [], 418: [FAST]}, end=430)


def test_a_leak_all_day_pages_once(tmp_path: Path):
    """Four times the budget: too slow for the fast page. Half a day of it is twice a day's."""
    calm, leak, after = 4320, 1440, 720
    series = indicator("availability", ((calm, 600), (leak, 600), (after, 600)), ((calm, 0), (leak, 2.4), (after, 0)))
    seen = {4320: [], 5000: [], 5080: [DAY], 5760: [DAY], 6010: [], 6480: []}
    check(tmp_path, series + promised(6490), seen, end=6480, tick=5)


def test_an_incident_that_paged_is_not_told_again_by_the_day_or_by_a_ticket(tmp_path: Path):
    """An outage of 10 minutes is 0.7 % of its day."""
    series = indicator("availability", ((1500, 600), (10, 600), (1200, 600)), ((1500, 0), (10, 600), (1200, 0)))
    check(
        tmp_path, series + promised(2720), {1505: [FAST], 1540: [FAST], 1555: [], 2000: [], 2700: []}, end=2705, tick=5
    )


def test_the_day_page_is_silent_at_low_traffic(tmp_path: Path):
    """19 failures of 5,000 requests in a day: nearly four times the budget."""
    series = indicator("availability", ((1440, 5000 / 1440),), ((1440, 19 / 1440),))
    check(tmp_path, series + promised(1445), {1440: [SLOW]}, end=1440, tick=5)


def test_a_slow_leak_is_a_ticket(tmp_path: Path):
    """One and a half times the budget, over days."""
    series = indicator("availability", ((4320, 600), (4320, 600), (720, 600)), ((4320, 0), (4320, 0.9), (720, 0)))
    seen = {4320: [], 7000: [], 7320: [SLOW], 8640: [SLOW], 9240: []}
    check(tmp_path, series + promised(9400), seen, end=9300, tick=5)


def test_the_worst_revision_is_named(tmp_path: Path):
    series = indicator("availability", ((60, 550),), ((60, 0),))
    series += indicator("availability", ((60, 50),), ((60, 25),), revision="r2")
    labels = {**WHO, "sli": "availability", "severity": "page"}
    said = {
        "summary": "availability of shop/products fails its users fast",
        "description": "shop/products: availability: the error budget of 30 days burns 41.67 times as fast as it may."
        " Of its revisions the worst is r2: 50% of its requests in the last hour.",
        "look": "kubectl rerank status products -n shop",
        "runbook_url": "docs/runbooks/RerankErrorBudgetBurn.md",
    }
    annotations = [(60, "RerankErrorBudgetBurn", [(labels, said)])]
    check(tmp_path, series + promised(70), {60: [FAST]}, end=60, annotations=annotations)


def test_errors_are_weighed_by_traffic(tmp_path: Path):
    """A busy calm hour and a quiet bad one: of 37,200 requests 120 failed, which an average of hours would call 5 %."""
    series = indicator("availability", ((60, 600), (60, 20)), ((60, 0), (60, 2)))
    expected = [({"__name__": "rerank:sli_errors:ratio_rate2h", **WHO, "sli": "availability"}, 120 / 37200)]
    check(
        tmp_path,
        series + promised(130),
        {100: [], 120: [FAST]},
        end=120,
        values=[(120, expected[0][0]["__name__"], expected)],
    )


# --- late answers ---

BREACH = burn("RerankLatencyBreach", "latency")
BURN_OF_LATENCY = burn("RerankErrorBudgetBurn", "latency")


def test_late_answers_page_within_ten_minutes_and_once(tmp_path: Path):
    """All answers late for 100 minutes: the budget would page after 43 and 14.4 times, and does not."""
    series = indicator("latency", ((120, 600), (100, 600), (60, 600)), ((120, 0), (100, 600), (60, 0)))
    seen = {125: [], 128: [BREACH], 200: [BREACH], 225: [BREACH], 229: []}
    check(tmp_path, series + promised(290), seen, end=280)


def test_where_the_budget_has_paged_late_answers_do_not(tmp_path: Path):
    """No more than half of the mean traffic: first the budget pages. Then traffic comes, and nobody is paged again."""
    calm, quiet, busy = 600, 60, 60
    series = indicator("latency", ((calm, 600), (quiet, 300), (busy, 900)), ((calm, 0), (quiet, 300), (busy, 900)))
    seen = {640: [], 655: [BURN_OF_LATENCY], 700: [BURN_OF_LATENCY]}
    check(tmp_path, series + promised(730), seen, end=720)


def test_late_answers_go_on_being_one_page_while_traffic_wanes(tmp_path: Path):
    """By day the fault begins, by night there is half of the traffic; all answers are late until the end."""
    spans: tuple[tuple[int, float], ...] = ((600, 600), (60, 600), (120, 300), (60, 300))
    bad: tuple[tuple[int, float], ...] = ((600, 0), (60, 600), (120, 300), (60, 0))
    seen = {605: [], 610: [BREACH], 690: [BREACH], 720: [BREACH], 780: [BREACH], 800: []}
    check(tmp_path, indicator("latency", spans, bad) + promised(850), seen, end=835)


def test_a_new_reranker_whose_answers_are_late_pages(tmp_path: Path):
    """30 % of the answers are six times the budget, and no more: no burn is fast enough. There is no mean yet."""
    series = indicator("latency", ((25, 600),), ((25, 180),))
    check(tmp_path, series + promised(30), {3: [], 20: [BREACH]}, end=24)


@pytest.mark.parametrize(
    ("what", "requests", "bad"),
    [
        ("at half of the mean traffic", ((600, 600), (60, 300)), ((600, 0), (60, 60))),
        ("a spike of 3 minutes", ((120, 600), (3, 600), (60, 600)), ((120, 0), (3, 600), (60, 0))),
        ("at the quantile", ((120, 600), (120, 600)), ((120, 30), (120, 30))),
        ("a little above it, with few requests", ((120, 20), (120, 20)), ((120, 1), (120, 1.6))),
        ("too few to tell", ((120, 2), (120, 2)), ((120, 0), (120, 0.9))),
    ],
)
def test_late_answers_are_silent(tmp_path: Path, what: str, requests: Spans, bad: Spans):
    check(
        tmp_path,
        indicator("latency", requests, bad) + promised(700),
        {170: []},
        end=sum(_as_span(span).minutes for span in requests) - 1,
    )


def test_late_answers_in_maintenance_are_silent(tmp_path: Path):
    series = indicator("latency", ((120, 600), (60, 600), (60, 600)), ((120, 0), (60, 60), (60, 0)))
    check(tmp_path, series + promised(250, (115, 0), (67, 1), (68, 0)), {170: [], 185: []}, end=240)


# --- nobody there ---


def held(waiting: Spans, ready: Spans) -> list[Series]:
    return [
        gauge("rerank_gateway_waiting_requests", *waiting, **WHO, pod="g1"),
        gauge("rerank_gateway_serving_endpoints", *ready, **WHO, pod="g1"),
        # Of a canary that answers no user: Regression, it kept the page silent.
        gauge("rerank_gateway_endpoints", (200, 1), **WHO, revision="canary", pod="g1"),
        gauge("rerank_worker_requests_in_flight", *ready, **WHO, revision="r1", pod="w1"),
    ]


def test_requests_that_wait_for_a_worker_that_never_comes_page_once(tmp_path: Path):
    """One client that gives up and asks again: waiting is 0 now and then."""
    waits = [(4, 1), (1, 0)] * 8
    series = held(((10, 0), *waits, (30, 0)), ((50, 0), (30, 1)))
    nobody = burn("RerankNoWorkers")
    seen = {19: [], 22: [nobody], 50: [nobody], 60: []}
    check(tmp_path, series + promised(90), seen, end=75)


@pytest.mark.parametrize(
    ("what", "waiting", "ready"),
    [
        ("a cold start of 8 minutes", ((10, 0), (8, 3), (40, 0)), ((18, 0), (40, 1))),
        ("at zero, and nobody asks", ((60, 0),), ((60, 0),)),
        ("busy", ((60, 5),), ((60, 1),)),
    ],
)
def test_waiting_is_silent(tmp_path: Path, what: str, waiting: Spans, ready: Spans):
    check(tmp_path, held(waiting, ready) + promised(70), {50: []}, end=57)
