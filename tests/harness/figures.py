"""How benches tell what they measured: milliseconds by quantile, one JSON object out, progress on the error stream."""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def quantile(values: Iterable[float], share: float) -> float:
    """The value that a share of the values does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def spread(seconds: Iterable[float]) -> dict[str, float | int | None]:
    """Count and quantiles in milliseconds; null where there is nothing, which is not the same as nought."""
    values = list(seconds)
    found: dict[str, float | int | None] = {"count": len(values)}
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        found[f"{name}_ms"] = round(1000 * quantile(values, share), 3) if values else None
    return found


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the flags that every bench has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return made


def note(text: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def publish(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """The figures, with where and when they were measured, on stdout and in the file that was asked for."""
    setting = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "options": {name: str(value) for name, value in vars(options).items() if name != "json"},
    }
    text = json.dumps({"setting": setting, **figures}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
