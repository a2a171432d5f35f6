"""Labels of the gateway's series."""

Labels = tuple[str, ...]
"""Their names, or the values of one series in that order."""

RERANKER = ("namespace", "reranker")
REVISION = (*RERANKER, "revision")
