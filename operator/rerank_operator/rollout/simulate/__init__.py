"""Rollouts that never happen: what a judge would have done to a canary that one describes."""
