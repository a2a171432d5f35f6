"""Looks at all gateways and all Rerankers again and again, and keeps what the page tells. An edge: it decides nothing.

The operator's own work comes first: parsing and adding up happen in one thread of its own and take at most a small part
of the time; a fleet for which they would take more is looked at less often. So is one while nobody asks for the page,
for users' requests wait while a gateway collects its metrics. Every wait has a deadline, every answer a limit. What
fails is told on the page and tried again with the next look.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp
import msgspec

from rerank_operator.controller.kinds import PODS, RERANKERS, Key
from rerank_operator.controller.leader import steady_clock
from rerank_operator.controller.observe import pod_state
from rerank_operator.controller.store import Store
from rerank_operator.page import shapes, views
from rerank_operator.page.exposition import SERIES, Reader, Sample
from rerank_operator.page.figures import STEP_SECONDS, Figures
from rerank_operator.page.history import History

log = logging.getLogger(__name__)

REST_SECONDS = 30.0
"""Between two looks at gateways while nobody asks for the page: often enough for a curve of the last hour."""
WATCHED_SECONDS = 60.0
"""That somebody is taken to look at the page who has asked for it: a browser asks every 5 s, and every 30 s out of
sight."""
METRICS_PATH = "/metrics"
ONLY = "name[]"
"""In the query, a series that is to be told. Older gateways tell all whatever is asked."""
DEADLINE_SECONDS = 4.0
"""For one gateway's answer."""
MOST_AT_ONCE = 8
"""Gateways that are asked at a time."""
LONGEST_ANSWER = 32 * 2**20
"""Bytes: what 4,000 busy Rerankers take, and only 2,000 at a gateway that tells all whatever is asked."""
MOST_CHARACTERS = 300
"""Of why a gateway was not heard."""
STATUS_SECONDS = 1.0
"""Between two looks at the Rerankers' statuses, which cost next to nothing."""
MISSED_LOOKS = 3
"""Figures that are older than so many looks at gateways take are not those of now."""
SHARE = 10
"""Looks at gateways may take one part in so many of the time."""

Made = TypeVar("Made")


class Standing(msgspec.Struct, frozen=True):
    """How it is with this operator."""

    leads: bool = False
    leader: str = ""
    """Who holds the lease, as last seen; empty: nobody."""
    synced: bool = False
    listed: float | None = None
    """When all objects were last listed, by the steady clock."""
    listing: float = 60.0
    """Seconds between two such lists."""
    trouble: str = ""
    gateways: Mapping[str, str] | None = None
    """The Pod's name by address of the admin port; None: nobody has said who the gateways are."""


class Sampling:
    def __init__(
        self,
        store: Store,
        standing: Callable[[], Standing],
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_clock,
    ) -> None:
        self._store = store
        self._standing = standing
        self._wall = wall
        self._steady = steady
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="page")
        # Touched in that thread alone.
        self._figures = Figures()
        self._history = History()
        self._reader = Reader()
        self._heard: frozenset[str] = frozenset()
        """Addresses that the last look heard."""
        self._silent: dict[str, tuple[float, str]] = {}
        """Addresses that the last look did not hear: since when (Unix seconds), and why."""
        self._cost = 0.0
        """Seconds that the last look took of the thread."""
        self._pace = STEP_SECONDS
        """Seconds until the next look at gateways, as planned after the last one."""
        self._asked = -math.inf
        """When the page was last asked for."""
        self._wanted = asyncio.Event()
        """It was asked for since the looks began to be few."""

    async def run(self) -> None:
        session = aiohttp.ClientSession(auto_decompress=False, trust_env=False)
        try:
            async with session, asyncio.TaskGroup() as group:
                group.create_task(_often(self._look_at_statuses, _moment))
                group.create_task(_often(lambda: self._look_at_gateways(session), self._rest))
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _rest(self, took: float) -> None:
        """After a look at gateways that took so many seconds; longer until somebody asks for the page."""
        self._wanted.clear()
        await asyncio.sleep(max(STEP_SECONDS / 2, max(STEP_SECONDS, SHARE * self._cost) - took))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace - STEP_SECONDS):
                await self._wanted.wait()

    def _is_asked(self) -> None:
        self._asked = self._steady()
        self._wanted.set()

    async def _apart(self, work: Callable[[], Made]) -> Made:
        """Runs ``work`` in the page's own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- looks ---

    async def _look_at_statuses(self) -> None:
        if self._standing().synced:
            bodies, now = self._bodies(), self._wall()
            await self._apart(lambda: self._history.look(bodies, now))

    async def _look_at_gateways(self, session: aiohttp.ClientSession) -> None:
        standing = self._standing()
        if not standing.synced:
            return
        addresses = list(standing.gateways or ())
        limit = asyncio.Semaphore(MOST_AT_ONCE)
        # Gateways count up to when they are asked, however long one of them then takes.
        now, unix = self._steady(), self._wall()
        answers = await asyncio.gather(*(_ask(session, address, limit) for address in addresses))
        told, bodies = dict(zip(addresses, answers, strict=True)), self._bodies()
        await self._apart(lambda: self._take(now, unix, told, bodies))
        self._pace = STEP_SECONDS if self._steady() - self._asked < WATCHED_SECONDS else REST_SECONDS

    def _take(self, now: float, unix: float, told: dict[str, bytes | Exception], bodies: list[dict[str, Any]]) -> None:
        began = time.thread_time()
        staff = {_key(body): views.staff_of(body) for body in bodies}
        samples: dict[str, Sample | None] = {}
        silent: dict[str, tuple[float, str]] = {}
        for address, answer in told.items():
            try:
                if isinstance(answer, Exception):
                    raise answer
                samples[address] = self._reader.read(answer, staff)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                samples[address] = None
                silent[address] = self._silent.get(address, (unix, ""))[0], _why(error)
        self._figures.take(now, samples, staff)
        self._heard = frozenset(samples.keys() - silent.keys())
        self._silent = silent
        self._cost = time.thread_time() - began

    # --- what the page tells ---

    async def fleet(self) -> bytes:
        """shapes.Fleet as JSON."""
        self._is_asked()
        bodies, made = self._bodies(), self._seen()
        return await self._apart(lambda: _json(views.fleet(bodies, made(), self._figures, self._clocks())))

    async def reranker(self, key: Key) -> bytes | None:
        """shapes.Detail or shapes.Lacking as JSON; None: there is no such Reranker."""
        self._is_asked()
        body = self._store.get(RERANKERS, *key)
        made = self._seen()
        if body is None:
            return None if self._standing().synced else await self._apart(lambda: _json(views.not_listed(key, made())))
        # As in ``observe``: a pod without the Reranker's own label is lent to it.
        pods = [(state, not state.revision) for state in (pod_state(pod) for pod in self._store.children(PODS, key))]

        def view() -> bytes:
            return _json(views.detail(body, pods, self._history, made(), self._figures, self._clocks()))

        return await self._apart(view)

    def _seen(self) -> Callable[[], shapes.Seen]:
        """How it is now; the rest of it is read in the page's thread."""
        standing, apart = self._standing(), self._clocks()

        def made() -> shapes.Seen:
            figures = self._figures
            return shapes.Seen(
                time=self._wall(),
                leads=standing.leads,
                leader=standing.leader,
                synced=standing.synced,
                listed=None if standing.listed is None else standing.listed + apart,
                listing=standing.listing,
                trouble=standing.trouble,
                gateways=[
                    shapes.Gateway(name, address in self._heard, *self._silent.get(address, (None, "")))
                    for address, name in sorted((standing.gateways or {}).items(), key=lambda each: each[1])
                ],
                gateways_named=standing.gateways is not None,
                looked=None if figures.last is None else figures.last + apart,
                since=None if figures.since is None else figures.since + apart,
                patience=MISSED_LOOKS * max(self._pace, SHARE * self._cost),
            )

        return made

    def _clocks(self) -> float:
        return self._wall() - self._steady()

    def _bodies(self) -> list[dict[str, Any]]:
        """Every Reranker. Stored objects are replaced and never changed, so another thread may read them."""
        found = (self._store.get(RERANKERS, *key) for key in self._store.keys())  # noqa: SIM118 (no mapping)
        return [body for body in found if body is not None]


async def _often(look: Callable[[], Awaitable[None]], rest: Callable[[float], Awaitable[None]]) -> None:
    """``rest`` is told how many seconds the look took."""
    failure = ""
    while True:
        began = steady_clock()
        try:
            await look()
            failure = ""
        except Exception as error:  # whatever it is, the page must not end the operator, nor itself
            if failure != repr(error):
                failure = repr(error)
                log.exception("the page could not look")
        await rest(steady_clock() - began)


async def _moment(took: float) -> None:
    """After a look at statuses."""
    await asyncio.sleep(max(STATUS_SECONDS / 2, STATUS_SECONDS - took))


async def _ask(session: aiohttp.ClientSession, address: str, limit: asyncio.Semaphore) -> bytes | Exception:
    """The metrics of one gateway, or why there are none."""
    url, only = f"http://{address}{METRICS_PATH}", [(ONLY, series) for series in SERIES]
    headers = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"}
    try:
        async with (
            limit,
            asyncio.timeout(DEADLINE_SECONDS),
            session.get(url, params=only, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise ValueError(f"its metrics are answered with status {answer.status}")
            content = bytearray()
            async for part in answer.content.iter_any():
                content += part
                if len(content) > LONGEST_ANSWER:
                    raise ValueError(f"its metrics are longer than {LONGEST_ANSWER} bytes")
            return bytes(content)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return error


def _why(error: Exception) -> str:
    """In a line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    words = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)  # else with all of the URL
    return " ".join(words.split())[:MOST_CHARACTERS] or type(error).__name__


def _key(body: dict[str, Any]) -> Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _json(view: shapes.Fleet | shapes.Detail | shapes.Lacking) -> bytes:
    return msgspec.json.encode(view)
