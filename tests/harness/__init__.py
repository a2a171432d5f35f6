"""What the demo and the end-to-end tests share: a cluster, the installed chart, its gateways, and load.

Never touches the user's own kube context: every command is given its kubeconfig.
"""
