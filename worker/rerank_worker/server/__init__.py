"""The HTTP side: what the wire says (protocol), where it is answered (routes), how a request is served (serving) and
how the process starts, drains and ends (lifecycle).
"""
