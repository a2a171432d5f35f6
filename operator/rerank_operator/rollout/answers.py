"""Asks gateways what answers each revision gave since it was last asked, and counts none of them twice.

A poll has one deadline for each gateway; one that fails is left out, and its answers come next time, for it keeps them.
What was heard is told by places in each gateway process (``Cursors``): who keeps these with what was made of the
answers loses none in a restart of the operator. Decides nothing. An answer that makes no sense is left out as a whole.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import aiohttp
import msgspec
from rerank_api.answers import ANSWERS_PATH, Answers, Mirrored, RevisionAnswers

from rerank_operator.rollout.judge.windows import Window

SECONDS = 2.0
"""For one gateway's whole answer."""
MOST_BYTES = 4 * 2**20
"""Of one gateway's answer; two revisions' and what was mirrored are some 300 KiB."""
FORGOTTEN_AFTER = 3600.0
"""Seconds in which a gateway process was not heard."""
LONGEST = 86_400.0
"""Seconds; no request took longer."""

T = TypeVar("T")


class GatewayCursor(msgspec.Struct):
    """What was heard of one gateway process."""

    address: str
    """Where it was last."""
    heard: float
    """When, in Unix seconds."""
    places: dict[str, int] = {}
    """By revision, of the first answer that was not heard yet."""
    mirrored: dict[str, int] = {}


class Cursors(msgspec.Struct):
    gateways: dict[str, GatewayCursor] = {}
    """By the gateway process's id."""


class Polled(msgspec.Struct):
    """What is new, oldest first, and where to go on."""

    stable: Window
    canary: Window
    mirrored: list[Mirrored]
    cursors: Cursors
    heard: int
    """Gateways that answered."""
    missed: dict[str, str]
    """By address, why the others were not heard."""


class _Told(msgspec.Struct):
    """New answers of one gateway."""

    stable: Window
    canary: Window
    mirrored: list[Mirrored]
    cursor: GatewayCursor


class _NotUnderstood(Exception):
    pass


_decoder = msgspec.json.Decoder(Answers)


async def poll(
    session: aiohttp.ClientSession,
    addresses: Collection[str],
    key: tuple[str, str],
    stable: str,
    canary: str,
    cursors: Cursors,
    *,
    from_start: bool = False,
    clock: Callable[[], float] = time.time,
) -> Polled:
    """What the gateways at ``addresses`` (HOST:PORT of their admin ports) tell since ``cursors``, which stays as it is.

    ``key``: namespace and name of the Reranker. ``stable``, ``canary``: their revisions. Of a gateway process, or a
    revision, that has no cursor yet nothing counts but what comes after this poll; with ``from_start``, of stable's all
    that the gateway keeps does: what it did before a rollout. ``clock``: Unix seconds.
    """
    ordered = sorted(set(addresses))
    answers = await asyncio.gather(*(_ask(session, address, key, (stable, canary), cursors) for address in ordered))
    now = clock()
    told: dict[str, _Told] = {}
    missed: dict[str, str] = {}
    for address, answer in zip(ordered, answers, strict=True):
        try:
            if isinstance(answer, str):
                missed[address] = answer
            elif answer.gateway not in told:  # one process at two addresses has told the same twice
                cursor = cursors.gateways.get(answer.gateway) or GatewayCursor(address, now)
                told[answer.gateway] = _told(answer, cursor, stable, canary, from_start)
                told[answer.gateway].cursor.address, told[answer.gateway].cursor.heard = address, now
        except _NotUnderstood as error:
            missed[address] = f"not understood: {error}"
    parts = list(told.values())
    kept = {process: one for process, one in cursors.gateways.items() if now - one.heard <= FORGOTTEN_AFTER}
    return Polled(
        _merged([part.stable for part in parts]),
        _merged([part.canary for part in parts]),
        _interleaved([part.mirrored for part in parts]),
        Cursors(kept | {process: one.cursor for process, one in told.items()}),
        len(ordered) - len(missed),
        missed,
    )


async def _ask(
    session: aiohttp.ClientSession, address: str, key: tuple[str, str], revisions: tuple[str, str], cursors: Cursors
) -> Answers | str:
    """What it answered, or why nothing came.

    Which process is at an address only the answer tells: where it is not the one that was expected there, and other
    places were asked for than that one needs, it is asked again.
    """
    expected = {one.address: process for process, one in cursors.gateways.items()}.get(address, "")
    try:
        async with asyncio.timeout(SECONDS):
            answer = await _get(session, address, key, revisions, cursors.gateways.get(expected))
            if answer.gateway == expected or (not expected and answer.gateway not in cursors.gateways):
                return answer
            again = await _get(session, address, key, revisions, cursors.gateways.get(answer.gateway))
            return again if again.gateway == answer.gateway else "its process changes from one answer to the next"
    except TimeoutError:
        return f"no answer in {SECONDS:g} s"
    except (aiohttp.ClientError, OSError) as error:
        return str(error) or type(error).__name__
    except (ValueError, _NotUnderstood) as error:
        return f"not understood: {error}"


async def _get(
    session: aiohttp.ClientSession,
    address: str,
    key: tuple[str, str],
    revisions: tuple[str, str],
    cursor: GatewayCursor | None,
) -> Answers:
    places = cursor.places if cursor is not None else {}
    mirrored = cursor.mirrored if cursor is not None else {}
    canary = revisions[1]
    asked = [("namespace", key[0]), ("name", key[1])]
    asked += [("after", f"{revision}:{places.get(revision, 0)}") for revision in revisions]
    asked += [("mirrored-after", f"{canary}:{mirrored.get(canary, 0)}")]
    async with session.get(f"http://{address}{ANSWERS_PATH}", params=asked, allow_redirects=False) as response:
        if response.status != 200:
            raise _NotUnderstood(f"status {response.status}")
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > MOST_BYTES:
                raise _NotUnderstood(f"its answer is longer than {MOST_BYTES} bytes")
    return _decoder.decode(content)


def _told(answer: Answers, cursor: GatewayCursor, stable: str, canary: str, from_start: bool) -> _Told:
    """Raises _NotUnderstood."""
    windows: dict[str, Window] = {stable: Window(), canary: Window()}
    places = {revision: place for revision, place in cursor.places.items() if revision in windows}
    mirrored_places = {revision: place for revision, place in cursor.mirrored.items() if revision == canary}
    # What is not named has no answers yet: the first one will be news.
    revisions = {one.revision: one for one in answer.revisions}
    for revision in (stable, canary):
        one = revisions.get(revision)
        if one is None:
            places.setdefault(revision, 0)
            continue
        _check(one)
        begin = places.get(revision, 0 if from_start and revision == stable else one.next)
        windows[revision] = _after(one, begin)
        places[revision] = one.next
    mirrored: list[Mirrored] = []
    found = next((one for one in answer.mirrored if one.revision == canary), None)
    if found is None:
        mirrored_places.setdefault(canary, 0)
    else:
        if len(found.answers) > found.next:
            raise _NotUnderstood(f"mirrored: {len(found.answers)} answers, of {found.next} in all")
        for one in found.answers:
            _check_mirrored(one)
        new = _new(found.next, mirrored_places.get(canary, found.next), len(found.answers))
        mirrored = found.answers[len(found.answers) - new :]
        mirrored_places[canary] = found.next
    cursor = GatewayCursor(cursor.address, cursor.heard, places, mirrored_places)
    return _Told(windows[stable], windows[canary], mirrored, cursor)


def _check(one: RevisionAnswers) -> None:
    if len(one.seconds) > one.next:
        raise _NotUnderstood(f"revision {one.revision}: {len(one.seconds)} answers, of {one.next} in all")
    if not all(0 <= seconds <= LONGEST for seconds in one.seconds):
        raise _NotUnderstood(f"revision {one.revision}: seconds must be from 0 to {LONGEST:g}")
    before = -1
    for place in one.failed:
        if not before < place < len(one.seconds):
            raise _NotUnderstood(f"revision {one.revision}: failed must be ascending places in seconds")
        before = place


def _check_mirrored(one: Mirrored) -> None:
    if not (0 <= one.stable_seconds <= LONGEST and 0 <= one.canary_seconds <= LONGEST):
        raise _NotUnderstood(f"mirrored: seconds must be from 0 to {LONGEST:g}")
    if one.agreement is not None and not -1 <= one.agreement <= 1:
        raise _NotUnderstood("mirrored: agreement must be from -1 to 1")
    if one.drift is not None and one.drift < 0:
        raise _NotUnderstood("mirrored: drift must be 0 at least")


def _new(end: int, begin: int, length: int) -> int:
    """How many of the last ``length`` answers, which end before place ``end``, are at ``begin`` or later.

    None where the count is lower than what was heard: the gateway has forgotten the Reranker, and counts anew.
    """
    return min(max(end - begin, 0), length)


def _after(one: RevisionAnswers, begin: int) -> Window:
    dropped = len(one.seconds) - _new(one.next, begin, len(one.seconds))
    return Window(one.seconds[dropped:], [place - dropped for place in one.failed if place >= dropped])


def _merged(windows: Sequence[Window]) -> Window:
    flagged = []
    for window in windows:
        failed = set(window.failed)
        flagged.append([(seconds, place in failed) for place, seconds in enumerate(window.seconds)])
    both = _interleaved(flagged)
    return Window([seconds for seconds, _ in both], [place for place, (_, failed) in enumerate(both) if failed])


def _interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """All of them, each part spread evenly over the whole and in its order: as if they came in the same time."""
    placed = [
        ((place + 0.5) / len(part), number, one) for number, part in enumerate(parts) for place, one in enumerate(part)
    ]
    return [one for _, _, one in sorted(placed, key=lambda each: each[:2])]
