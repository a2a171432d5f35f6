"""Where a golden set is read from and who is asked to rank it, for a canary's gate and for slo.quality alike.

The edge to the cluster: it decides nothing, starts no worker and writes nothing.
"""

import asyncio
import hashlib

import msgspec
from rerank_api.reranker import GoldenSetSource

from rerank_operator.controller.api import ApiError, KubeApi
from rerank_operator.controller.kinds import CONFIG_MAPS
from rerank_operator.controller.observe import Observed
from rerank_operator.rollout.golden.ask import CannotAsk
from rerank_operator.rollout.golden.golden_set import BadGoldenSet, GoldenSet, parse_golden_set

MOST_KEYS = 10
"""That are told."""


class Stored(msgspec.Struct, frozen=True):
    """A golden set as it is kept."""

    where: str
    """What it is called in messages."""
    text: str
    version: str
    """Of its ConfigMap."""
    digest: str
    """Of its ConfigMap's name, the key that the spec names, and its text."""

    async def parsed(self) -> GoldenSet:
        """Raises BadGoldenSet. Aside: what a user has made large or deep must not keep the lease from being renewed."""
        return await asyncio.to_thread(parse_golden_set, self.text, self.where)


async def stored_golden_set(api: KubeApi, namespace: str, source: GoldenSetSource) -> Stored:
    """Raises BadGoldenSet where there is none, ApiError and Unreachable where nobody can tell."""
    where = f"spec.rollout.goldenSet: ConfigMap {namespace}/{source.config_map}"
    try:
        found = await api.get(CONFIG_MAPS, namespace, source.config_map)
    except ApiError as error:
        if error.status != 404:
            raise
        raise BadGoldenSet(f"{where} does not exist: create it") from None
    data = found.get("data") or {}
    if not data:
        binary = " but binaryData, which is not read: is the file text in UTF-8?" if found.get("binaryData") else ""
        raise BadGoldenSet(f"{where} has no data{binary or ': put the golden set under a key of it'}")
    name = source.key if source.key is not None else next(iter(data)) if len(data) == 1 else None
    if name is None:
        raise BadGoldenSet(f"{where} has {len(data)} keys: name one of them in key")
    if name not in data:
        keys = sorted(data)[:MOST_KEYS]
        more = f" and {len(data) - MOST_KEYS} more" if len(data) > MOST_KEYS else ""
        raise BadGoldenSet(f"{where} has no key {name}: it has {', '.join(keys)}{more}")
    digest = hashlib.sha256(msgspec.json.encode((source.config_map, source.key, data[name]))).hexdigest()[:16]
    return Stored(f"{where}, key {name}", data[name], found["metadata"]["resourceVersion"], digest)


def worker_of(observed: Observed, revision: str) -> str:
    """Address of one ready worker of its own. Raises CannotAsk."""
    ready = [pod for pod in observed.pods if pod.revision == revision and pod.ready and pod.counts and pod.address]
    if not ready:
        raise CannotAsk(f"revision {revision} has no ready worker to rank the golden set")
    return min(ready, key=lambda pod: pod.name).address
