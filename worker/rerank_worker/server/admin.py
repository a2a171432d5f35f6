"""The admin calls: which models are here, load or swap one, unload one. For whoever holds the bearer token.

A holder may load any folder that the process can read and any repository that it can download: the token is worth what
the process's files are, so give it to whoever runs the fleet only. With neither a token file nor a token's checksum the
calls are switched off.
"""

import hashlib
import hmac
import logging
import os
import re
import time
from pathlib import Path
from typing import Protocol

from aiohttp import web
from rerank_api import wire

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.metrics import Metrics
from rerank_worker.server import protocol
from rerank_worker.server.body import Body
from rerank_worker.server.models import Models
from rerank_worker.server.protocol import Refusal

log = logging.getLogger(__name__)

ENV_TOKEN_FILE = "RERANK_ADMIN_TOKEN_FILE"  # noqa: S105 (a path)
ENV_TOKEN_SHA256 = "RERANK_ADMIN_TOKEN_SHA256"  # noqa: S105 (a checksum)
"""The sha256 of the token in hexadecimal: whoever reads it can check a token with it, and cannot make one. For a
random token of 128 bits or more: a short one is found by trying."""

MAX_CONFIG_BYTES = 2**18

DEFAULT_TIMEOUT = 60.0
"""Seconds that a call without a deadline of its own waits."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


class Token(Protocol):
    def matches(self, header: str | None) -> bool:
        """Whether ``header`` (of Authorization) carries the token."""
        ...


def read_token(file: str | None, sha256: str | None) -> Token | None:
    """The token in ``file``, or the one with checksum ``sha256``; None where neither is given.

    Raises ConfigurationFailure, which never repeats what was given for a checksum: it may be the token itself.
    """
    if sha256 is None:
        return None if file is None else FileToken(file)
    if file is not None:
        raise ConfigurationFailure(
            f"both ${ENV_TOKEN_SHA256} and --admin-token-file (or ${ENV_TOKEN_FILE}) say which token the admin calls "
            "need: keep one of them"
        )
    if not _SHA256.fullmatch(sha256):
        raise ConfigurationFailure(
            f"${ENV_TOKEN_SHA256} is not the sha256 of a token: it must be 64 hexadecimal digits and has "
            f"{len(sha256)} characters (printf %s TOKEN | sha256sum)"
        )
    digest = bytes.fromhex(sha256)
    if digest == hashlib.sha256().digest():
        raise ConfigurationFailure(
            f"${ENV_TOKEN_SHA256} is the sha256 of an empty token: give that of a long random one"
        )
    return DigestToken(digest)


class DigestToken:
    """A token of which only the sha256 is known to this process."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def matches(self, header: str | None) -> bool:
        return _carries(header, self._digest)


class FileToken:
    """The token in a file, read anew whenever the file changes (a mounted Secret does)."""

    def __init__(self, path: str) -> None:
        """Raises ConfigurationFailure when there is no token to read."""
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._digest: bytes | None = None
        try:
            self._read()
        except OSError as error:
            raise ConfigurationFailure(
                f"--admin-token-file (or ${ENV_TOKEN_FILE}): cannot read {path}: {error.strerror}"
            ) from error
        if self._digest is None:
            raise ConfigurationFailure(
                f"--admin-token-file (or ${ENV_TOKEN_FILE}): {path} is empty: write a long random token into it"
            )

    def matches(self, header: str | None) -> bool:
        """Whether ``header`` (of Authorization) carries the token; never while its file is empty or gone."""
        try:
            self._read()
        except OSError as error:
            self._seen, self._digest = None, None
            log.error("cannot read the admin token", extra={"fields": {"path": str(self._path), "error": str(error)}})
        return _carries(header, self._digest)

    def _read(self) -> None:
        stat = os.stat(self._path)
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            token = self._path.read_bytes().strip()
            self._digest = hashlib.sha256(token).digest() if token else None
            self._seen = seen


def _carries(header: str | None, digest: bytes | None) -> bool:
    """Whether ``header`` has the token with the sha256 ``digest``; never while there is none."""
    scheme, _, given = (header or "").partition(" ")
    found = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
    # Digests, compared in constant time: neither the token nor its length can be found out by trying.
    same = hmac.compare_digest(found, digest or b"")
    return same and digest is not None and scheme.lower() == "bearer"


class AdminRoutes:
    """``token``: None switches the calls that change something off."""

    def __init__(self, models: Models, token: Token | None, metrics: Metrics) -> None:
        self._models = models
        self._token = token
        self._metrics = metrics
        self._closed: str | None = None

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(wire.MODELS_PATH, self.list)
        app.router.add_put(wire.MODELS_PATH + "/{key}", self.put)
        app.router.add_delete(wire.MODELS_PATH + "/{key}", self.delete)

    def close(self, why: str) -> None:
        """Refuse changes from now on."""
        self._closed = why

    async def list(self, _request: web.Request) -> web.Response:
        return protocol.answer({"models": [model.facts() for model in self._models.all()]})

    async def put(self, request: web.Request) -> web.Response:
        key, deadline = self._admitted(request)
        with Body(request, MAX_CONFIG_BYTES) as body:
            config = protocol.decode_config(await body.read(deadline - time.monotonic()))
        model = await self._models.put(key, config, deadline)
        return protocol.answer(model.facts())

    async def delete(self, request: web.Request) -> web.Response:
        key, deadline = self._admitted(request)
        await self._models.delete(key, deadline)
        return protocol.answer({"key": key, "state": "unloaded"})

    def _admitted(self, request: web.Request) -> tuple[str, float]:
        """The model's key and the call's deadline. Raises Refusal."""
        if self._token is None:
            raise Refusal(
                "not_found",
                f"the admin calls are switched off: start the worker with --admin-token-file (or ${ENV_TOKEN_FILE}), "
                f"or with the token's sha256 in ${ENV_TOKEN_SHA256}",
            )
        authorization = request.headers.get("Authorization")
        if not self._token.matches(authorization):
            self._metrics.admin_refused.inc()
            log.warning("an admin call without the right token", extra={"fields": {"from": request.remote}})
            if (authorization or "").partition(" ")[0].lower() != "bearer":
                raise Refusal("unauthorized", "the admin calls need the header Authorization: Bearer TOKEN")
            raise Refusal("unauthorized", "the bearer token is not the one that this worker was started with")
        if self._closed is not None:
            raise Refusal("unavailable", self._closed)
        key = request.match_info["key"]
        if not _KEY.fullmatch(key):
            raise Refusal("invalid_request", "a model's key has 1 to 200 letters, digits, dots, dashes and underscores")
        seconds = protocol.seconds_left(request.headers.get(wire.HEADER_TIMEOUT), DEFAULT_TIMEOUT)
        return key, time.monotonic() + seconds
