"""`kubectl rerank`: what a person asks of a rollout, and does to it, through the person's own kubectl.

It has no connection of its own and knows no secrets; it never writes anything but annotations of Rerankers.
"""
