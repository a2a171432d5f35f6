"""The front door: finds workers by watching Pods, holds requests until one is free, routes, retries and adapts APIs.

It serves on from what it last knew when the API server or the operator is away, and never writes to the cluster.
"""
