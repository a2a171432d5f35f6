"""The replica count that a spec asks for. Pure; what is running, and whether it fits, is not its business."""

from rerank_api.reranker import RerankerSpec


def desired_replicas(spec: RerankerSpec) -> int:
    """``replicas`` (absent: one, or ``minReplicas``) within ``minReplicas`` and ``maxReplicas``; 0 while suspended."""
    if spec.suspend:
        return 0
    wanted = max(1, spec.scaling.min_replicas) if spec.replicas is None else spec.replicas
    return min(max(wanted, spec.scaling.min_replicas), spec.scaling.max_replicas)
