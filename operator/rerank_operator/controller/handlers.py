"""The kopf registrations: every event of every watched kind goes to one sink, and nothing else happens here.

Only event handlers: handlers of changes, timers and daemons would write kopf's annotations and finalizers into objects.
"""

import random
from collections.abc import Callable
from typing import Any

import kopf

from rerank_operator.controller.api import load_configuration
from rerank_operator.controller.kinds import WATCHED, Kind

Sink = Callable[[Kind, bool, dict[str, Any]], None]
"""Takes the kind, whether the object was deleted, and the object."""


def registry(sink: Sink) -> kopf.OperatorRegistry:
    made = kopf.OperatorRegistry()
    kopf.on.login(registry=made)(login)
    for kind in WATCHED:
        kopf.on.event(kind.group, kind.version, kind.plural, id=f"watch-{kind.plural}", registry=made)(
            _handler(kind, sink)
        )
    return made


def _handler(kind: Kind, sink: Sink) -> Callable[..., Any]:
    async def handle(event: Any, **_: Any) -> None:
        sink(kind, event["type"] == "DELETED", event["object"])

    return handle


async def login(**_: Any) -> kopf.ConnectionInfo:
    """The same credentials as all our own requests; asked for again when the API server refuses them."""
    configuration = await load_configuration()
    scheme, _separator, token = (await configuration.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme="Bearer" if token else scheme or None,
        token=token or None,
        proxy_url=configuration.proxy,
    )


class Backoffs:
    """Delays between tries of one request, without end: kopf gives up the whole operator when they run out."""

    def __iter__(self) -> Any:
        longest = 0.5
        while True:
            yield longest * (0.5 + random.random() / 2)  # noqa: S311
            longest = min(longest * 2, 5.0)


def settings() -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    # Each watch ends by itself within 5 minutes; one that is silent for 70 s (bookmarks come each minute) is reopened.
    made.watching.server_timeout = 300
    made.watching.client_timeout = 330
    made.watching.inactivity_timeout = 70
    made.watching.connect_timeout = 5
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 5
    made.networking.error_backoffs = Backoffs()
    # The handlers only hand over; their tasks need not linger for the next event of the same object.
    made.queueing.worker_limit = 100
    made.queueing.idle_timeout = 0.2
    made.posting.enabled = False
    # No lists of CRDs and Namespaces, nor the permissions for them: ``watches`` waits for our CRD itself.
    made.scanning.disabled = True
    for kind in WATCHED:
        if kind.label_selector:
            made.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.label_selector
    return made
