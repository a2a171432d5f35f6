"""Keeps the routing table current by listing and watching Rerankers and worker Pods.

Every connection has a time limit on both sides, so a frozen API server is noticed; every failure is followed by a
bounded, jittered pause; and what was last known stays in force for as long as the API server is away. Read-only.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import aiohttp
import msgspec
from rerank_api import names

from rerank_gateway.cluster.state import Endpoint, Key, Policy, RoutingTable, build_table, parse_pod, parse_policy

log = logging.getLogger(__name__)

PAGE_SIZE = 500
LIST_TIMEOUT = 30.0
# The server ends a watch after 30 s; silence for longer than that means that the connection is frozen.
WATCH_SECONDS = 30
WATCH_READ_TIMEOUT = 40.0
CONNECT_TIMEOUT = 5.0
RESYNC_SECONDS = 600.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
# Changes that come in bursts (a rollout, a re-list) make one new table, not one each.
PUBLISH_DELAY = 0.01

T = TypeVar("T")


class Source(Protocol):
    """Where the gateway gets its routing table from."""

    @property
    def table(self) -> RoutingTable: ...

    @property
    def synced(self) -> bool:
        """True once everything was read for the first time; stays True when the source is away."""
        ...

    def subscribe(self, listener: Callable[[RoutingTable], None]) -> None: ...

    def stalled(self, now: float) -> str | None:
        """Why the source no longer makes progress, or None. Being unable to connect is no stall: trying is progress."""
        ...


Get = Callable[[str, list[tuple[str, str]], aiohttp.ClientTimeout], Awaitable[aiohttp.ClientResponse]]
"""Sends a GET (path, query, time limits) to the API server and returns the open response."""


class _Expired(Exception):
    """The API server no longer has the version to go on from: list again."""


class _Refused(Exception):
    """The API server answered with an error."""


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _ObjectList(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw]


class _ObjectMetadata(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _ObjectMetadata = msgspec.field(default_factory=_ObjectMetadata)
    code: int = 0  # of a Status
    message: str = ""


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


_list_decoder = msgspec.json.Decoder(_ObjectList)
_object_decoder = msgspec.json.Decoder(_Object)
_event_decoder = msgspec.json.Decoder(_Event)


class ResourceWatch(Generic[T]):
    """The objects of one resource, parsed; ``parse`` returning None leaves an object out."""

    def __init__(
        self,
        get: Get,
        path: str,
        selector: str,
        parse: Callable[[bytes], T | None],
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.objects: dict[Key, T] = {}
        self.synced = False
        self.last_progress = clock()
        self.failures = 0
        """Failed lists and watches since the start."""
        self.path = path
        self._get = get
        self._selector = [("labelSelector", selector)] if selector else []
        self._parse = parse
        self._on_change = on_change
        self._clock = clock
        self._connected = False

    async def run(self) -> None:
        """Until cancelled."""
        version: str | None = None
        listed_at = 0.0
        pause = 0.0
        while True:
            started = self._clock()
            try:
                if version is None or started - listed_at > RESYNC_SECONDS:
                    version = await self._list()
                    listed_at = started
                version = await self._watch(version)
                pause = 0.0 if self._clock() - started > 1 else FIRST_PAUSE
            except _Expired:
                version = None
                pause = FIRST_PAUSE
            except (_Refused, aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.MsgspecError) as error:
                self._report_failure(error)
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            self.last_progress = self._clock()
            if pause:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (spreads load, guards no secret)

    async def _list(self) -> str:
        fresh: dict[Key, T] = {}
        query = [*self._selector, ("limit", str(PAGE_SIZE))]
        token = ""
        while True:
            page_query = [*query, ("continue", token)] if token else query
            async with await self._get(self.path, page_query, aiohttp.ClientTimeout(LIST_TIMEOUT)) as response:
                body = await response.read()
                _check(response.status, body)
            page = _list_decoder.decode(body)
            for raw in page.items:
                key = _key(raw)
                value = self._parse_or_keep(key, bytes(raw))
                if value is not None:
                    fresh[key] = value
            token = page.metadata.continue_
            if not token:
                break
        changed = fresh != self.objects or not self.synced
        self.objects = fresh
        self.synced = True
        if changed:
            self._on_change()
        return page.metadata.resource_version

    async def _watch(self, version: str) -> str:
        """Follows changes after ``version``; returns the version to go on from when the server ends the watch."""
        query = [
            *self._selector,
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_SECONDS)),
        ]
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=WATCH_READ_TIMEOUT)
        async with await self._get(self.path, query, limits) as response:
            if response.status != 200:
                _check(response.status, await response.read())
            self._report_connected()
            while line := await response.content.readline():
                version = self._apply(_event_decoder.decode(line)) or version
                self.last_progress = self._clock()
        return version

    def _apply(self, event: _Event) -> str:
        about = _object_decoder.decode(event.object)
        if event.type == "ERROR":
            if about.code == 410:
                raise _Expired
            raise _Refused(f"the watch ended with code {about.code}: {about.message}")
        if event.type != "BOOKMARK":
            key = _key(event.object)
            old = self.objects.get(key)
            new = None if event.type == "DELETED" else self._parse_or_keep(key, bytes(event.object))
            if new is None:
                self.objects.pop(key, None)
            else:
                self.objects[key] = new
            if new != old:
                self._on_change()
        return about.metadata.resource_version

    def _parse_or_keep(self, key: Key, raw: bytes) -> T | None:
        try:
            return self._parse(raw)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("%s %s/%s cannot be read, what was known of it stays in force: %s", self.path, *key, error)
            return self.objects.get(key)

    def _report_failure(self, error: Exception) -> None:
        self.failures += 1
        level = logging.WARNING if self._connected or self.failures == 1 else logging.DEBUG
        self._connected = False
        log.log(level, "watching %s failed, trying on: %s: %s", self.path, type(error).__name__, error)

    def _report_connected(self) -> None:
        if not self._connected:
            self._connected = True
            log.info("watching %s: %d objects", self.path, len(self.objects))


def _key(raw: msgspec.Raw) -> Key:
    metadata = _object_decoder.decode(raw).metadata
    return (metadata.namespace, metadata.name)


def _check(status: int, body: bytes) -> None:
    if status == 410:
        raise _Expired
    if status != 200:
        try:
            message = _object_decoder.decode(body).message
        except msgspec.MsgspecError:
            message = "no Kubernetes Status in the answer"
        raise _Refused(f"the API server answered {status}: {message}")


class ClusterSource:
    """The routing table out of the watched objects of all namespaces, or of those given."""

    STALL_SECONDS = 120.0

    def __init__(self, get: Get, namespaces: Sequence[str], clock: Callable[[], float]) -> None:
        self.table = RoutingTable()
        self.synced = False
        self._clock = clock
        self._listeners: list[Callable[[RoutingTable], None]] = []
        self._publish_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._rerankers: list[ResourceWatch[Policy]] = []
        self._pods: list[ResourceWatch[Endpoint]] = []
        workers = f"{names.LABEL_NAME}={names.APP_NAME},{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}"
        for scope in [f"/namespaces/{namespace}" for namespace in namespaces] or [""]:
            path = f"/apis/{names.API_VERSION}{scope}/{names.PLURAL}"
            self._rerankers.append(ResourceWatch(get, path, "", parse_policy, self._changed, clock))
            path = f"/api/v1{scope}/pods"
            self._pods.append(ResourceWatch(get, path, workers, parse_pod, self._changed, clock))

    @property
    def watches(self) -> list[ResourceWatch[Policy] | ResourceWatch[Endpoint]]:
        return [*self._rerankers, *self._pods]

    def subscribe(self, listener: Callable[[RoutingTable], None]) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(watch.run(), name=f"watch {watch.path}") for watch in self.watches]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._publish_timer is not None:
            self._publish_timer.cancel()

    def stalled(self, now: float) -> str | None:
        for task in self._tasks:
            if task.done():
                return f"{task.get_name()} has ended"
        for watch in self.watches:
            if now - watch.last_progress > self.STALL_SECONDS:
                return f"watch {watch.path} made no progress for {now - watch.last_progress:.0f} s"
        return None

    def _changed(self) -> None:
        if self._publish_timer is None:
            self._publish_timer = asyncio.get_running_loop().call_later(PUBLISH_DELAY, self._publish)

    def _publish(self) -> None:
        self._publish_timer = None
        self.table = build_table(
            [policy for watch in self._rerankers for policy in watch.objects.values()],
            [endpoint for watch in self._pods for endpoint in watch.objects.values()],
        )
        for listener in self._listeners:
            listener(self.table)
        self.synced = all(watch.synced for watch in self.watches)
