"""What a process's OTEL_* environment says of its traces: whether any are exported, and what is wrong with it.

Pure, and loads no SDK: where no endpoint is set, nothing of OpenTelemetry is in the process. Names and meanings are the
standard's (opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables); what is not understood here is
refused at the start, for the SDK would go on with a default, which samples every request.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SAMPLER = "OTEL_TRACES_SAMPLER"
SAMPLER_ARGUMENT = "OTEL_TRACES_SAMPLER_ARG"
BY_RATIO = "parentbased_traceidratio"
"""The sampler: as the caller has decided, and for a trace that begins here, a share of them by its id."""
BY_DEFAULT = "parentbased_always_on"
WITH_RATIO = (BY_RATIO, "traceidratio")
ALWAYS = (BY_DEFAULT, "always_on")
NEVER = ("parentbased_always_off", "always_off")
PARENT_BASED = (BY_RATIO, BY_DEFAULT, "parentbased_always_off")
SAMPLERS = (*WITH_RATIO, *ALWAYS, *NEVER)

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def traces_wanted(environment: Mapping[str, str]) -> bool:
    """Whether spans are to be made and exported, over HTTP. Raises ValueError: that cannot be done as it is asked."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    name = next((name for name in (TRACES_ENDPOINT, ENDPOINT) if environment.get(name)), None)
    if name is None or exporter == "none":
        return False
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter!r}: only otlp and none are there")
    for protocol in _PROTOCOLS:
        if environment.get(protocol, "http/protobuf") not in ("", "http/protobuf"):
            raise ValueError(f"{protocol} is {environment[protocol]!r}: only http/protobuf is there")
    with _naming(name):
        checked_endpoint(environment[name])
    sampler = environment.get(SAMPLER, "").lower()
    if sampler and sampler not in SAMPLERS:
        raise ValueError(f"{SAMPLER} is {sampler!r}: use one of {', '.join(SAMPLERS)}")
    if sampler in WITH_RATIO:
        with _naming(SAMPLER_ARGUMENT):
            checked_ratio(environment.get(SAMPLER_ARGUMENT, ""))
    return True


def checked_endpoint(text: str) -> str:
    """The base address of a collector that takes OTLP over HTTP. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} must be the address of a collector, such as http://collector.monitoring:4318")
    return text


def checked_ratio(text: str) -> float:
    """Share of traces, 0 to 1. Raises ValueError."""
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{text!r} must be a number from 0 to 1, such as 0.01 for one trace in a hundred")
    return ratio


@contextmanager
def _naming(variable: str) -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None
