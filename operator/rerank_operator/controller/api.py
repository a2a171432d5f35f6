"""The one way to the API server: plain JSON requests with deadlines, errors in the server's own words, fenced writes.

Writes pass a fence just before they are sent: an operator that may have lost its leadership writes nothing. There
are no retries here; who calls decides. The generated models of the Kubernetes client are not used: objects are dicts.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_incluster_config, load_kube_config
from rerank_api import names

from rerank_operator.controller import metrics
from rerank_operator.controller.kinds import Kind

REQUEST_SECONDS = 15.0


class ApiError(Exception):
    """The API server's refusal, with its own words."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{message} ({status} {reason})" if reason else f"{message} ({status})")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def passing(self) -> bool:
        """True: not about what was asked, so the same request may succeed later."""
        if self.message.startswith("failed to create typed patch object"):
            return False  # an unknown field in server-side apply is answered with 500
        return self.status in (401, 408, 409, 410, 429) or self.status >= 500


class Unreachable(Exception):
    """No answer from the API server in time."""


class NotLeader(Exception):
    """Another operator leads, or may lead before this write would be done."""


Fence = Callable[[], float]
"""Seconds for which this process may still write; 0 or less: not at all."""


async def load_configuration() -> Configuration:
    """How to reach the API server: the kubeconfig where KUBECONFIG is set, else the pod's account, else ~/.kube."""
    configuration = Configuration()
    if not os.environ.get("KUBECONFIG") and os.environ.get("KUBERNETES_SERVICE_HOST"):
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(client_configuration=configuration)
    return configuration


class KubeApi:
    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._client = RESTClientObject(configuration)
        self.fence: Fence = lambda: 0.0

    async def close(self) -> None:
        await self._client.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        return await self._request("GET", kind.path(namespace, name))

    async def list(self, kind: Kind, namespace: str | None) -> dict[str, Any]:
        query = {"labelSelector": kind.label_selector} if kind.label_selector else {}
        return await self._request("GET", kind.path(namespace), query)

    async def discover(self, group_version: str) -> dict[str, Any]:
        return await self._request("GET", f"/apis/{group_version}")

    async def apply(self, kind: Kind, manifest: dict[str, Any], subresource: str | None = None) -> dict[str, Any]:
        """Server-side apply: fields that we no longer name are removed, fields of others are taken over."""
        metadata = manifest["metadata"]
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        path = kind.path(metadata["namespace"], metadata["name"], subresource)
        return await self._write("PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def merge(self, kind: Kind, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        query = {"fieldManager": names.FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._write("PATCH", kind.path(namespace, name), query, patch, "application/merge-patch+json")

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, resource_version: str) -> None:
        """Deletes exactly the object that was looked at, or fails with a conflict."""
        options = {
            "preconditions": {"uid": uid, "resourceVersion": resource_version},
            "propagationPolicy": "Background",
        }
        await self._write("DELETE", kind.path(namespace, name), {}, options)

    async def create_event(self, namespace: str, event: dict[str, Any], kind: Kind) -> None:
        await self._write("POST", kind.path(namespace), {"fieldManager": names.FIELD_MANAGER}, event)

    async def put_lease(self, kind: Kind, lease: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Not fenced: this is how leadership is won. ``resourceVersion`` in the lease guards it; absent: create."""
        metadata = lease["metadata"]
        if "resourceVersion" in metadata:
            path = kind.path(metadata["namespace"], metadata["name"])
            return await self._request("PUT", path, {}, lease, seconds=seconds)
        return await self._request("POST", kind.path(metadata["namespace"]), {}, lease, seconds=seconds)

    async def _write(
        self, method: str, path: str, query: dict[str, str], body: Any, content_type: str = "application/json"
    ) -> dict[str, Any]:
        # A write that is answered after our lease has run out might come after another leader's.
        allowed = self.fence()
        if allowed <= 0:
            raise NotLeader("this operator does not hold the lease")
        return await self._request(method, path, query, body, content_type, min(allowed, REQUEST_SECONDS))

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> dict[str, Any]:
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        async with self._counted(method):
            headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": names.FIELD_MANAGER}
            if token := await self._configuration.get_api_key_with_prefix("BearerToken"):
                headers["Authorization"] = token
            async with asyncio.timeout(seconds):
                answer = await self._client.request(method, url, headers, body, _request_timeout=seconds)
                content = await answer.read()
            if answer.status == 401:  # a token from a kubeconfig's exec plugin has run out
                self._configuration.api_key = (await load_configuration()).api_key
            if answer.status >= 400:
                raise _error(answer.status, content)
            return msgspec.json.decode(content)

    @contextlib.asynccontextmanager
    async def _counted(self, method: str) -> AsyncGenerator[None]:
        try:
            yield
        except ApiError as error:
            if (method, error.status) != ("GET", 404):  # that is an answer, to whether something is there
                metrics.API_ERRORS.labels(method, str(error.status)).inc()
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.API_ERRORS.labels(method, "unreachable").inc()
            raise Unreachable(f"no answer from the API server: {error or type(error).__name__}") from error


def _error(status: int, content: bytes) -> ApiError:
    try:
        answer = msgspec.json.decode(content)
        return ApiError(status, str(answer.get("reason", "")), str(answer["message"]))
    except (msgspec.DecodeError, AttributeError, KeyError):
        return ApiError(status, "", content[:200].decode(errors="replace") or "no message")
