"""The pieces of PromQL that the dashboards are written with. Metrics are those of docs/metrics.md.

Pure. Nothing here knows a namespace, a Reranker or a revision by name: Grafana's variables choose.
"""

RERANKER = 'namespace=~"$namespace", reranker=~"$reranker"'
REVISION = f'{RERANKER}, revision=~"$revision"'
EACH = "namespace, reranker"
NAME = "{{namespace}}/{{reranker}}"
"""Of a series with the labels EACH."""


def rate(counter: str) -> str:
    """A second, of each Reranker, of a counter that knows revisions."""
    return f"sum by ({EACH}) (rate({counter}{{{REVISION}}}[$__rate_interval]))"


def mean(histogram: str) -> str:
    return f"{rate(f'{histogram}_sum')} / {rate(f'{histogram}_count')}"


def quantile(q: float, histogram: str, selector: str, by: str = EACH) -> str:
    return f"histogram_quantile({q:g}, sum by ({by}, le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval])))"
