"""The HTTP side: what the wire says (protocol, body), where it is answered (routes, admin), who gets in (admission),
how a request is served (serving), which models are here (models), how the process starts, drains and ends (lifecycle).
"""
