"""Makes a worker bad on purpose: Python imports this file first wherever PYTHONPATH names its folder.

RERANK_FAULT says what is wrong with it, several things separated by commas:
slow=SECONDS    every scoring request waits that long first
errors=SHARE    that share of the scoring requests is answered with 500: every so-many-th, not by chance
crash=COUNT     the process ends at the scoring request of that number; 0: as soon as it starts

It stands before the worker's own handlers, at aiohttp's public seam, and knows nothing of the worker but its paths.
Without RERANK_FAULT it changes nothing.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

VARIABLE = "RERANK_FAULT"
EXIT_CODE = 9
"""None of the worker's own, so that nobody can know the reason."""


@dataclass(frozen=True)
class Fault:
    slow: float = 0.0
    errors: float = 0.0
    crash: int | None = None

    def fails(self, number: int) -> bool:
        """Whether the scoring request of this number, from 1 on, is one of the share that fails."""
        return int(number * self.errors) > int((number - 1) * self.errors)


def parse(text: str) -> Fault:
    """Raises ValueError naming the part that says nothing."""
    fields: dict[str, Any] = {}
    kinds = {"slow": float, "errors": float, "crash": int}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise ValueError(f"{VARIABLE}: {part!r} must be one of {', '.join(kinds)} with =VALUE")
        fields[name] = kinds[name](value)
    return Fault(**fields)


def crash() -> NoReturn:
    print(f"ended on purpose ({VARIABLE})", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def arm(fault: Fault) -> None:
    """Every aiohttp application of this process has the fault from now on."""
    if fault.crash == 0:
        crash()
    from aiohttp import web  # here, so that a process without a fault does not pay for it

    count = 0

    @web.middleware
    async def faulty(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        nonlocal count
        if request.method != "POST" or not request.path.endswith("/score"):
            return await handler(request)
        count += 1
        number = count
        if fault.crash is not None and number >= fault.crash:
            crash()
        if fault.slow:
            await asyncio.sleep(fault.slow)
        if fault.fails(number):
            return web.json_response({"code": "internal", "message": f"failed on purpose ({VARIABLE})"}, status=500)
        return await handler(request)

    begin = web.Application.__init__

    def init(self: web.Application, *args: Any, middlewares: Any = (), **rest: Any) -> None:
        begin(self, *args, middlewares=[faulty, *middlewares], **rest)

    web.Application.__init__ = init


if VARIABLE in os.environ:
    arm(parse(os.environ[VARIABLE]))
