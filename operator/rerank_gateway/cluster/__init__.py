"""What the gateway knows about the cluster: watched objects, reduced to an immutable routing table."""
