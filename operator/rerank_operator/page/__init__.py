"""The operator's own page: the fleet and each Reranker, live, for people without Grafana. It only reads."""
