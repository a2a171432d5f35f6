"""`kubectl rerank`: what a person asks of a Reranker, and does to it, through the person's own kubectl.

It has no connection of its own but through `kubectl port-forward`, and knows no secrets. It writes annotations of
Rerankers; asked to, a temperature (`calibrate --apply`), and a Job that it removes again (`tune`); nothing else.
"""
