"""Schedules: windows of the week in which a Reranker has a floor of replicas. Pure: the time is passed in.

A schedule only ever raises the floor; it never lowers a count and never keeps one down.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """From each ``start`` to the next ``end`` (cron, five fields, in ``timezone``) at least ``min_replicas`` replicas."""

    name: str
    start: str
    end: str
    min_replicas: int
    timezone: str = "UTC"
