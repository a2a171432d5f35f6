"""What a recording rule and an alert are, and the words that many of them share. Pure.

``scaled`` gives the same rules in a world where time runs faster; it never touches a name.
"""

import re
import textwrap
from dataclasses import dataclass, replace
from typing import Literal

SHORTEST = 1.0
"""Seconds; no window, ``for`` or interval is scaled below, for a window must hold two scrapes."""


@dataclass(frozen=True)
class Recording:
    record: str
    expr: str
    why: str = ""
    """A comment above the rule."""


@dataclass(frozen=True)
class Alert:
    name: str
    severity: Literal["page", "ticket"]
    expr: str
    why: str
    """Why the thresholds are what they are, with figures; a comment above the rule."""
    summary: str
    """One line; Prometheus' templates may be used, as in ``description`` and ``look``."""
    description: str
    look: str
    """The command to run first."""
    means: str
    """For the table in docs/slos.md: when it fires."""
    hold: str = "0s"
    """``for``: how long the expression must be true."""
    keep: str = "0s"
    """``keep_firing_for``: how long it goes on after that, so that a gap in the data does not end and repeat it."""


@dataclass(frozen=True)
class Group:
    name: str
    interval: str
    rules: tuple[Recording | Alert, ...]
    why: str = ""


# --- words of expressions and annotations ---

OF_SLI = "on (namespace, reranker, sli)"
OF_RERANKER = "on (namespace, reranker)"
NAME = "{{ $labels.namespace }}/{{ $labels.reranker }}"
STATUS = "kubectl rerank status {{ $labels.reranker }} -n {{ $labels.namespace }}"
DESCRIBE = "kubectl -n {{ $labels.namespace }} describe reranker {{ $labels.reranker }}"
BY_RERANKER = "by (namespace, reranker)"
BY_REVISION = "by (namespace, reranker, revision)"


def silent(window: str) -> str:
    """Nothing that happened in maintenance counts: not even just after it, while ``window`` still holds it."""
    return f"unless {OF_RERANKER}\n  max_over_time(rerank:maintenance[{and_a_little(window)}]) == 1"


def and_a_little(window: str) -> str:
    """5 minutes longer: what has been recorded is up to an evaluation older than what is asked now."""
    return f"{seconds(window) / 60 + 5:.0f}m"


def quiet(expr: str, window: str = "0m") -> str:
    """``expr``, whatever its operators, of Rerankers that were not in maintenance in the ``window`` that it sees."""
    return f"(\n{textwrap.indent(textwrap.dedent(expr).strip(), '  ')}\n)\n{silent(window)}"


def either(*sides: str) -> str:
    """One of them; where several are true, the value is the first one's."""
    return "\nor\n".join("(\n" + textwrap.indent(textwrap.dedent(side).strip(), "  ") + "\n)" for side in sides)


# --- time ---

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LENGTH = r"\d+(?:ms|[smhd])"
_IN_EXPR = re.compile(rf"(?<=\[){_LENGTH}(?=[\]:])|(?<=:){_LENGTH}(?=\])|(?<=offset ){_LENGTH}")


def seconds(length: str) -> float:
    number = length.rstrip("msdh")
    return int(number) * _UNITS[length.removeprefix(number)]


def _scaled_length(length: str, factor: float) -> str:
    if factor == 1 or not seconds(length):
        return length
    return f"{max(SHORTEST, seconds(length) * factor) * 1000:.0f}ms"


def scaled(group: Group, factor: float) -> Group:
    """The same group in a world where time runs ``1 / factor`` times as fast. Names of metrics stay."""

    def text(value: str) -> str:
        return _IN_EXPR.sub(lambda found: _scaled_length(found.group(), factor), value)

    def rule(one: Recording | Alert) -> Recording | Alert:
        if isinstance(one, Recording):
            return replace(one, expr=text(one.expr))
        return replace(
            one,
            expr=text(one.expr),
            description=text(one.description),
            hold=_scaled_length(one.hold, factor),
            keep=_scaled_length(one.keep, factor),
        )

    return replace(group, interval=_scaled_length(group.interval, factor), rules=tuple(map(rule, group.rules)))
