"""The Grafana dashboards as files, for helm/generate.py. What they show is in executive.py, on_call.py and debug.py."""

import json

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from helm.monitoring.debug import debug
from helm.monitoring.executive import executive
from helm.monitoring.on_call import on_call


def rendered() -> dict[str, str]:
    """File name to JSON, with a line end, of every dashboard."""
    made = {"executive": executive(), "on-call": on_call(), "debug": debug()}
    return {f"{name}.json": json.dumps(one, cls=JSONEncoder, indent=1) + "\n" for name, one in made.items()}
