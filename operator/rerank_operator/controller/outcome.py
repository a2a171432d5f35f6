"""How a reconcile ended, in the one word that its metric is labelled with and that the queue's backoff goes by.

The one place that says what an exception means. It must never let one end the loop of a worker.
"""

import asyncio
import logging
from collections.abc import Awaitable

from rerank_operator.controller.api import ApiError, NotLeader, Unreachable
from rerank_operator.controller.apply import NotYet

log = logging.getLogger(__name__)

LONGEST_SECONDS = 120.0
"""Longer than any reconcile whose requests are answered at all."""

OK, REFUSED, NOT_LEADER = "ok", "refused", "not leader"


async def outcome(reconcile: Awaitable[str], subject: dict[str, str]) -> str:
    """What ``reconcile`` returns, or what kept it from that. ``subject``: the object that it is about, for the log."""
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            return await reconcile
    except NotLeader:
        return NOT_LEADER
    except ApiError as error:
        if error.status != 409:
            log.warning("reconcile: %s", error, extra=subject)
        return "conflict" if error.status == 409 else REFUSED
    except NotYet as error:
        log.info("reconcile: %s", error, extra=subject)
        return "waiting"
    except (Unreachable, TimeoutError) as error:
        log.warning("reconcile: %s", error or "took too long", extra=subject)
        return "unreachable"
    except Exception:  # one object that we cannot cope with must not stop the others
        log.exception("reconcile failed", extra=subject)
        return "error"


def is_failure(ended: str) -> bool:
    """Whether it should be tried again after a while."""
    return ended not in (OK, NOT_LEADER)
