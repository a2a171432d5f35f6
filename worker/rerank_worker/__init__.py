"""The worker: loads one cross-encoder and scores (query, document) pairs over HTTP, batched across requests.

The way of a request: parse -> tokenize in threads -> backlog -> batch -> engine thread that owns the device -> scores.
Nothing here talks to Kubernetes; what the worker must do arrives in one environment variable or as flags.
"""
