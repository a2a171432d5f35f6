"""Warm pools: what there is of one (observe), what should happen next (plan), and the calls to its workers (admin)."""
