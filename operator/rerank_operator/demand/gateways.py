"""Finds the gateways, the Pods of their Service, and listens to each one's stream of demand.

Every Pod that runs is a gateway, ready or not: one that is being stopped still has requests. Pods and not
EndpointSlices, for the reason that gateways have too (docs/decisions). What is heard goes to ``Totals`` and a callback;
nothing is decided here. Every wait has a deadline, and who cannot be heard is tried again without end, since the sums
are incomplete until then.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec
from rerank_api import names
from rerank_api.demand import DEMAND_PATH, DemandLine, decode_line

from rerank_operator.controller import metrics
from rerank_operator.controller.api import ApiError, KubeApi, Unreachable
from rerank_operator.controller.kinds import SERVICES, Key, Kind
from rerank_operator.controller.leader import steady_clock
from rerank_operator.controller.times import parse_time
from rerank_operator.demand.totals import SILENT_SECONDS, Totals

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
SHORTEST_LOOK_SECONDS = 0.25
"""Between two looks, however many streams end."""
FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 2.0
"""A gateway that is there again should not be missed for longer than one that is silent."""
OVERDUE_SECONDS = 60.0
"""A Pod that should have ended so long ago, and cannot be heard, is on a node that is lost: nobody reaches it."""
SAME_CLOCK_SECONDS = 1.0
"""Two clocks that are not further apart, with the way of a line, are taken for the same."""
LONGEST_LINE = 16 * 2**20
"""Bytes: some 30,000 Rerankers."""


class NotAGateway(Exception):
    """What answers at a gateway's address does not speak as one."""


class Gateways:
    """``changed`` is called with the Rerankers about which something new was heard."""

    def __init__(
        self, api: KubeApi, service: tuple[str, str], totals: Totals, changed: Callable[[set[Key]], None]
    ) -> None:
        """``service``: namespace and name of the gateways' Service."""
        self._api = api
        self._namespace, self._name = service
        self._totals = totals
        self._changed = changed
        self._addresses: dict[str, str] = {}
        self._silent: set[str] = set()
        """Addresses that were not heard at the last look."""
        self._told: set[str] = set()
        """Those that were not at the one before either, and so were named."""
        self._listeners: dict[str, asyncio.Task[None]] = {}
        self._streaming: set[str] = set()
        self._look_now = asyncio.Event()
        self._trouble = ""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Of the gateways' admin ports, as last seen, with the names of their Pods."""
        return self._addresses

    async def run(self) -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            try:
                while True:
                    await self._look(session)
                    await asyncio.sleep(SHORTEST_LOOK_SECONDS)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._look_now.wait()
                    self._look_now.clear()
            finally:
                for listener in self._listeners.values():
                    listener.cancel()
                await asyncio.gather(*self._listeners.values(), return_exceptions=True)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        try:
            service = await self._api.get(SERVICES, self._namespace, self._name)
            selector = service["spec"].get("selector")
            if not selector:
                raise NotAGateway(f"Service {self._namespace}/{self._name} has no selector")
            labels = ",".join(f"{label}={value}" for label, value in sorted(selector.items()))
            listed = await self._api.list(Kind("Pod", "", "v1", "pods", labels), self._namespace)
        except (ApiError, Unreachable, NotAGateway) as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                log.warning("the gateways cannot be found: %s", error)
            return
        self._trouble = ""
        self._addresses = addresses(service, listed["items"], time.time())
        self._totals.found(self._addresses, steady_clock())
        metrics_of_streams(self._totals)
        self._tell_silent()
        for address in self._addresses.keys() - self._listeners.keys():
            self._listeners[address] = asyncio.create_task(self._listen(session, address), name=f"gateway {address}")
        for address in self._listeners.keys() - self._addresses.keys() - self._streaming:
            self._listeners[address].cancel()

    def _tell_silent(self) -> None:
        silent = {address for address in self._addresses if self._totals.silent(address, steady_clock())}
        lasting = silent & self._silent
        if lasting - self._told:
            pods = ", ".join(f"{self._addresses[address]} ({address})" for address in sorted(lasting))
            log.warning("nothing is scaled down while these gateways are not heard: %s", pods)
        self._silent, self._told = silent, lasting

    async def _listen(self, session: aiohttp.ClientSession, address: str) -> None:
        """Until the address is no gateway's any more; a stream that still lives then is heard to its end."""
        delay, trouble = FIRST_RETRY_SECONDS, ""
        try:
            while address in self._addresses:
                began = steady_clock()
                try:
                    await self._stream(session, address)
                    why = "the stream has ended"
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    why = str(error) or "no line in time"
                except (msgspec.MsgspecError, ValueError, NotAGateway) as error:
                    why = f"not understood: {error}"
                finally:
                    self._streaming.discard(address)
                if why != trouble:
                    log.warning("gateway %s: %s", address, why)
                self._look_now.set()
                lasted = steady_clock() - began > LONGEST_RETRY_SECONDS
                trouble = "" if lasted else why
                await asyncio.sleep(delay)
                delay = FIRST_RETRY_SECONDS if lasted else min(delay * 2, LONGEST_RETRY_SECONDS)
        finally:
            del self._listeners[address]
            self._changed(self._totals.gone(address))

    async def _stream(self, session: aiohttp.ClientSession, address: str) -> None:
        wait = aiohttp.ClientTimeout(total=None, connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        async with session.get(f"http://{address}{DEMAND_PATH}", timeout=wait, read_bufsize=LONGEST_LINE) as answer:
            if answer.status != 200:
                raise NotAGateway(f"status {answer.status}")
            self._totals.connected(address)
            self._streaming.add(address)
            first = True
            while True:
                async with asyncio.timeout(SILENT_SECONDS):
                    line = await answer.content.readline()
                if not line:
                    return
                told = decode_line(line)
                if first and not told.full:
                    raise NotAGateway("its first line is not a full one")
                first = False
                changed = self._totals.line(address, in_our_time(told, time.time()), steady_clock())
                if changed:
                    self._changed(changed)
                if self._totals.silent(address, steady_clock()):
                    return  # its lines come late: a new stream begins with how it is now


def in_our_time(line: DemandLine, now: float) -> DemandLine:
    """The line with its times by our clock, which says ``now`` (Unix seconds), but for when it was sent.

    Where the two clocks agree but for the way, its times stay as they are: to change them each time a little is no
    news. None of them is yet to come.
    """
    apart = now - line.sent
    shift = 0.0 if abs(apart) <= SAME_CLOCK_SECONDS else apart

    def ours(time: float | None) -> float | None:
        return None if time is None else min(time + shift, now)

    rerankers = [
        msgspec.structs.replace(told, last_ended=ours(told.last_ended), waking_since=ours(told.waking_since))
        if told.last_ended is not None or told.waking_since is not None
        else told
        for told in line.rerankers
    ]
    return msgspec.structs.replace(line, rerankers=rerankers)


def addresses(service: dict[str, Any], pods: list[dict[str, Any]], now: float) -> dict[str, str]:
    """The Pod's name by ``host:port`` of its admin port, which ``service`` names (by number, or as the Pod does).

    Whose container for it is known not to run has no process, and so no requests.
    """
    target = next(
        (port.get("targetPort", port["port"]) for port in service["spec"].get("ports", ()) if _is_admin(port)), None
    )
    found = {}
    for pod in pods:
        host, phase = pod.get("status", {}).get("podIP"), pod.get("status", {}).get("phase")
        own = {port.get("name"): port["containerPort"] for part in pod["spec"]["containers"] for port in _ports(part)}
        port = own.get(target) if isinstance(target, str) else target
        ends_by = pod["metadata"].get("deletionTimestamp")
        lost = ends_by is not None and now > parse_time(ends_by) + OVERDUE_SECONDS
        if host and port and phase not in ("Succeeded", "Failed") and not lost and _may_run(pod, port):
            found[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"] = pod["metadata"]["name"]
    return found


def _may_run(pod: dict[str, Any], port: int) -> bool:
    """Not where the kubelet says of each container that could have the port that it waits or has ended."""
    containers = pod["spec"]["containers"]
    own = [part["name"] for part in containers if any(each["containerPort"] == port for each in _ports(part))]
    states = {one["name"]: one.get("state", {}) for one in pod.get("status", {}).get("containerStatuses") or ()}
    return any(not states.get(name) or "running" in states[name] for name in own or [c["name"] for c in containers])


def _is_admin(port: dict[str, Any]) -> bool:
    return port.get("name") == names.GATEWAY_ADMIN_PORT_NAME


def _ports(container: dict[str, Any]) -> list[dict[str, Any]]:
    return container.get("ports") or []


def metrics_of_streams(totals: Totals) -> None:
    heard, silent = totals.heard(steady_clock())
    metrics.GATEWAYS.labels("heard").set(heard)
    metrics.GATEWAYS.labels("silent").set(silent)
