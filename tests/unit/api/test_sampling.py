"""rerank_api.sampling: traces are kept as the SDK would keep them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from rerank_api import otlp, sampling
from rerank_api.sampling import TRACEPARENT, Parent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
RATIOS = ["0", "0.01", "0.25", "0.5", "1"]

_trace_ids = st.integers(1, 2**128 - 1).map("{:032x}".format) | st.sampled_from(
    [f"{'a' * 16}{bound:016x}" for bound in (0, 1, 2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1)]
)


@pytest.mark.parametrize("sampler", ["", "ALWAYS_ON", *otlp.SAMPLERS])
@given(ratio=st.sampled_from(RATIOS), trace_id=_trace_ids, flags=st.none() | st.integers(0, 3))
def test_what_is_kept_is_what_the_sdk_would_keep(sampler: str, ratio: str, trace_id: str, flags: int | None) -> None:
    environment = {otlp.SAMPLER: sampler, otlp.SAMPLER_ARGUMENT: ratio}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value) if value else patch.delenv(name, raising=False)
        sampler_of_sdk = TracerProvider(shutdown_on_exit=False).sampler
    headers = {} if flags is None else {TRACEPARENT: f"00-{trace_id}-{SPAN}-{flags:02x}"}
    context = TraceContextTextMapPropagator().extract(headers, Context())
    decided = sampler_of_sdk.should_sample(context, int(trace_id, 16), "name", SpanKind.SERVER).decision
    kept = sampling.of(environment).keeps(trace_id, sampling.parent(headers))
    assert kept == decided.is_sampled()


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", Parent(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-02", Parent(TRACE, SPAN, 2)),
        (f"cc-{TRACE}-{SPAN}-03", Parent(TRACE, SPAN, 3)),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"cc-{TRACE}-{SPAN}-0b-more", Parent(TRACE, SPAN, 11)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"cc-{TRACE}-{SPAN}-01more", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("00-0", None),
        ("", None),
    ],
)
def test_a_parent_is_read_where_the_sdk_reads_the_same(header: str, parent: Parent | None) -> None:
    assert sampling.parent({TRACEPARENT: header}) == parent
    if parent is not None:
        context = TraceContextTextMapPropagator().extract({TRACEPARENT: header}, Context())
        read = get_current_span(context).get_span_context()
        assert (f"{read.trace_id:032x}", f"{read.span_id:016x}", read.trace_flags) == parent


def test_who_sends_nothing_has_no_parent() -> None:
    assert sampling.parent({}) is None
