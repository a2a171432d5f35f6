"""Asks a Prometheus for one value: an instant query over HTTP (prometheus.io/docs/prometheus/latest/querying/api).

One question, one deadline, no second try: whoever asks does so again an interval later. Exactly one sample is a value;
none is no data, and several are an error, for which of them is meant nobody said. Decides nothing.
"""

import asyncio
from urllib.parse import urlsplit

import aiohttp
import msgspec

PATH = "/api/v1/query"
SECONDS = 5.0
"""For the whole answer."""
MOST_BYTES = 2**16
"""Of an answer: one sample with all its labels is some hundred bytes."""
MOST_SAID = 300
"""Letters of Prometheus' own words."""


class CannotQuery(Exception):
    """There is no value; the message says why, and what to do where that is known."""


class _Sample(msgspec.Struct):
    value: tuple[float, str] | None = None
    """None: a native histogram."""


class _Data(msgspec.Struct, rename="camel"):
    result_type: str
    result: msgspec.Raw


class _Answer(msgspec.Struct, rename="camel"):
    status: str
    data: _Data | None = None
    error_type: str = ""
    error: str = ""


_decoder = msgspec.json.Decoder(_Answer)
_vector = msgspec.json.Decoder(list[_Sample])
_scalar = msgspec.json.Decoder(tuple[float, str])


def checked_url(text: str) -> str:
    """Where a Prometheus is, without a slash at its end. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} must be the address of a Prometheus, such as http://prometheus.monitoring:9090")
    return text.rstrip("/")


async def ask(session: aiohttp.ClientSession, url: str, query: str) -> float | None:
    """The value of ``query`` (PromQL) now, at the Prometheus at ``url``, which may have a path; None: there is no data.
    NaN and infinities are values. Raises CannotQuery."""
    try:
        async with asyncio.timeout(SECONDS):
            content = await _content(session, url, query)
    except TimeoutError:
        raise CannotQuery(f"Prometheus gave no answer in {SECONDS:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise CannotQuery(f"Prometheus cannot be reached: {_short(str(error) or type(error).__name__)}") from None
    try:
        return _value(_decoder.decode(content))
    except ValueError as error:  # msgspec's too
        raise CannotQuery(f"Prometheus' answer is not understood: {_short(str(error))}") from None


async def _content(session: aiohttp.ClientSession, url: str, query: str) -> bytes:
    # As a form: a proxy may refuse an address as long as a query is.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with session.post(url + PATH, data={"query": query}, headers=headers, allow_redirects=False) as response:
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > MOST_BYTES:
                raise CannotQuery(
                    f"the query's answer is longer than {MOST_BYTES} bytes: aggregate it to one, with sum() or avg()"
                )
        if response.content_type != "application/json":
            raise CannotQuery(
                f"what answers is no Prometheus: status {response.status}, {_short(response.content_type)}; it was "
                f"asked {PATH} below --prometheus-url"
            )
    return bytes(content)


def _value(answer: _Answer) -> float | None:
    """Raises CannotQuery, or ValueError where it makes no sense."""
    if answer.status != "success" or answer.data is None:
        raise CannotQuery(f"Prometheus says {_short(f'{answer.error_type}: {answer.error}')}")
    kind = answer.data.result_type
    if kind == "scalar":
        return float(_scalar.decode(answer.data.result)[1])
    if kind != "vector":
        raise CannotQuery(
            f"the query gives a {_short(kind)} and not one value: take rate(), increase() or the like of it"
        )
    samples = _vector.decode(answer.data.result)
    if not samples:
        return None
    if len(samples) > 1:
        raise CannotQuery(f"the query gives {len(samples)} values: aggregate them to one, with sum() or avg()")
    value = samples[0].value
    if value is None:
        raise CannotQuery("the query gives a histogram and not one value: take histogram_quantile() or the like of it")
    return float(value[1])


def _short(text: str) -> str:
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}..."
