"""Child objects of a Reranker, one module a kind: pure functions from values to manifests for server-side apply."""
