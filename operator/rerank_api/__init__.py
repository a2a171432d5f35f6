"""What the operator, the gateway and the worker all speak: resource types, labels, revisions, wire types.

Values only: nothing here does I/O, and nothing here imports kopf, the Kubernetes client or torch.
"""
