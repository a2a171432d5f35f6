"""The level-based core: watches fill a store and a keyed queue; observe -> plan -> apply brings a Reranker to its spec.

Only ``api``, ``apply``, ``handlers``, ``watches``, ``leader``, ``reconcile`` and ``health`` do I/O; everything else
goes from values to values.
"""
