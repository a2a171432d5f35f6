"""The connection to the API server: where it is and who we are, from the pod's service account or a kubeconfig.

Only GET is offered: the gateway never writes to the cluster.
"""

import os

import aiohttp
from kubernetes.aio import client, config

from rerank_gateway.cluster.watch import Get


async def connect(kubeconfig: str | None) -> client.ApiClient:
    """A client by ``kubeconfig`` if given or named by KUBECONFIG, else by the pod's service account.

    Raises config.ConfigException when neither is there.
    """
    configuration = client.Configuration()
    kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")
    if kubeconfig:
        await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    configuration.retries = None  # the watches have their own, bounded pauses
    return client.ApiClient(configuration)


def getter(api: client.ApiClient) -> Get:
    async def get(path: str, query: list[tuple[str, str]], limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        method, url, headers, _, _ = await api.param_serialize(
            "GET", path, query_params=query, auth_settings=["BearerToken"]
        )
        headers["Accept"] = "application/json"
        response = await api.rest_client.request(method, url, headers=headers, _request_timeout=limits)
        return response.response

    return get
