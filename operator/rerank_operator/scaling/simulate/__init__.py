"""Replays traces of requests against a model of a fleet, to size a policy and a pool before a cluster pays for it.

Deterministic: no clock, no chance and no network. It decides nothing itself: it asks the same ``decide`` as the
operator does, or a published algorithm to compare it with. It never touches a cluster.
"""
