"""HTTP to the workers of warm pods: which models are there, load one, unload one.

Decides nothing; every call has a deadline, none retries.
A load that outlasts the call's deadline goes on in the worker: asking again waits for it.
"""

from typing import TypeVar

import aiohttp
import msgspec
from rerank_api import names, wire
from rerank_api.worker_config import WorkerConfig

T = TypeVar("T")

SLACK_SECONDS = 5.0
"""What the answer may take beyond the deadline that the worker was given."""
LIST_SECONDS = 5.0


class ModelFact(msgspec.Struct, frozen=True):
    """One model in one worker."""

    key: str
    state: str
    """loading, ready, draining or failed."""


class AdminError(Exception):
    """A worker did not do what it was asked to, in its own words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """As in wire.ErrorCode; or unreachable."""


class _Models(msgspec.Struct):
    models: list[ModelFact]


class Admin:
    def __init__(self) -> None:
        # Several pools, many pods, and one call a pod at a time: the limit is elsewhere.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)

    async def close(self) -> None:
        await self._session.close()

    async def models(self, address: str) -> tuple[ModelFact, ...]:
        """Raises AdminError."""
        content = await self._call("GET", address, wire.MODELS_PATH, None, None, LIST_SECONDS)
        return tuple(_decode(content, _Models).models)

    async def load(self, address: str, token: str, key: str, config: WorkerConfig, seconds: float) -> ModelFact:
        """The model, ready. Raises AdminError; deadline: it still loads."""
        body = msgspec.json.encode(config)
        return _decode(await self._call("PUT", address, _path(key), token, body, seconds), ModelFact)

    async def unload(self, address: str, token: str, key: str, seconds: float) -> None:
        """Requests that the model still has are finished first. Raises AdminError; not_found: it was not there."""
        await self._call("DELETE", address, _path(key), token, None, seconds)

    async def _call(
        self, method: str, address: str, path: str, token: str | None, body: bytes | None, seconds: float
    ) -> bytes:
        host = f"[{address}]" if ":" in address else address
        headers = {wire.HEADER_TIMEOUT: str(int(seconds * 1000)), "Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.request(
                method,
                f"http://{host}:{names.WORKER_PORT}{path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds + SLACK_SECONDS, sock_connect=LIST_SECONDS),
            ) as answer:
                content = await answer.read()
                if answer.status == 200:
                    return content
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AdminError("unreachable", f"no answer from {host}: {error or type(error).__name__}") from error
        raise _refusal(answer.status, content)


def _path(key: str) -> str:
    return f"{wire.MODELS_PATH}/{key}"


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AdminError("internal", f"the worker's answer is not understood: {error}") from error


def _refusal(status: int, content: bytes) -> AdminError:
    try:
        told = msgspec.json.decode(content, type=wire.WorkerError)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return AdminError("internal", f"the worker answered with status {status}")
    return AdminError(told.code, told.message)
