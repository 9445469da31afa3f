"""``K8sAwareVecraftClient``: the client that finds the gateways of its cluster through the Kubernetes API.

Where they are, in this order:

1. ``url``, as an argument, in the file that ``CONFIG_FILE`` names, or in the environment (``VCRAFT_URL``): that
gateway. 2. Inside a cluster: the ready endpoints of the service, watched as they come and go
   (:mod:`vecraft_db.client.gateway_watch`), the least busy first (:mod:`vecraft_db.client.balancing`). Its service
   account needs ``get, list, watch`` on ``endpointslices``; without, the service's DNS name is used.
3. Outside, with ``kubeconfig``: the same, for who can reach the pods' addresses; or, with ``port_forward=True``,
through
   the Kubernetes API, one connection after the other to the ready pods in turn.

Everything else is :class:`VecraftClient` with ``url=``: the same methods, answers and errors.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_db.client.balancing import AsyncBalancedTransport, BalancedTransport, GatewayPool
from vecraft_db.client.engine import Engine
from vecraft_db.client.gateway_watch import SERVICE_LABEL, GatewayWatch, kubernetes_module, ready_pods
from vecraft_db.client.port_forward import PortForward
from vecraft_db.client.rest_engine import open_rest
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.config import Settings

DEFAULT_SERVICE = "vecraft-gateway"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class K8sAwareVecraftClient(VecraftClient):
    """A database behind the gateways of a Kubernetes service. Close it: it watches them in the background.

    Args:
        url: A gateway, instead of finding them.
        namespace: Of the service; by default this pod's own, or the kubeconfig's.
        service: Its name, ``vecraft-gateway`` by default.
        kubeconfig: A kubeconfig file, outside of a cluster.
        port_forward: Go through the Kubernetes API, outside of the cluster's network.
        api_key: For the gateways.
        timeout: Seconds a call may take unless it says so.
        settings: Instead of environment and ``CONFIG_FILE``.
        options: Any other setting of :class:`vecraft_db.config.Settings`; ``port`` is the service's.

    Raises:
        InvalidDataException: Neither in a cluster nor told where one is.
        ShardUnavailableError: The Kubernetes API does not answer, or refuses.
        VecraftError: The official client is not installed (``pip install 'vecraftdb[kubernetes]'``).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        service: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        port_forward: bool | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        self._watch: GatewayWatch | None = None
        self._forward: PortForward | None = None
        base = (settings if settings is not None else Settings.load()).without("root", "shards", "address")
        super().__init__(
            url=url,
            namespace=namespace,
            service=service,
            kubeconfig=None if kubeconfig is None else os.fspath(kubeconfig),
            port_forward=port_forward,
            api_key=api_key,
            timeout=timeout,
            settings=base,
            **options,
        )

    def close(self) -> None:
        """Let go of the gateways and end the watch; closing twice does nothing."""
        super().close()
        if self._watch is not None:
            self._watch.stop()
        if self._forward is not None:
            self._forward.close()

    def _open(self, settings: Settings) -> Engine:
        if settings.url is not None:
            return open_rest(settings)
        api_client, home = _api_client(settings)
        namespace, service = settings.namespace or home, settings.service or DEFAULT_SERVICE
        discovery = kubernetes_module().DiscoveryV1Api(api_client)
        if settings.port_forward:
            self._forward = PortForward(_pod_connections(api_client, discovery, namespace, service, settings.port))
            return open_rest(settings.merged({"url": f"http://127.0.0.1:{self._forward.port}"}))
        pool = GatewayPool()
        self._watch = GatewayWatch(pool, discovery, namespace, service, settings.port)
        self._watch.start()
        named = settings.merged({"url": f"http://{service}.{namespace}.svc:{settings.port}"})
        return open_rest(named, BalancedTransport(pool), lambda: AsyncBalancedTransport(pool))


def _api_client(settings: Settings) -> tuple[Any, str]:
    """Return a client of the Kubernetes API and the namespace that it is at home in."""
    client, config = kubernetes_module(), kubernetes_module("config")
    configuration = client.Configuration()
    if settings.kubeconfig is not None or settings.port_forward:
        try:
            config.load_kube_config(config_file=settings.kubeconfig, client_configuration=configuration)
            _, context = config.list_kube_config_contexts(config_file=settings.kubeconfig)
        except (config.ConfigException, OSError) as error:
            raise InvalidDataException(f"the kubeconfig cannot be used: {error}") from error
        return client.ApiClient(configuration), str(context["context"].get("namespace") or "default")
    try:
        config.load_incluster_config(client_configuration=configuration)
        return client.ApiClient(configuration), _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise InvalidDataException(
            "this process does not run in a Kubernetes cluster: give url=, or kubeconfig= (with port_forward=True from "
            f"outside of the cluster's network); {error}"
        ) from error


def _pod_connections(api_client: Any, discovery: Any, namespace: str, service: str, port: int) -> Any:
    """Return a function that opens a connection to a ready pod of the service, to each in turn."""
    core = kubernetes_module().CoreV1Api(api_client)
    turn = itertools.count()

    def connect() -> Any:
        slices = discovery.list_namespaced_endpoint_slice(namespace, label_selector=f"{SERVICE_LABEL}={service}").items
        pods = ready_pods(slices)
        if not pods:
            raise ShardUnavailableError(f"no pod behind service {service!r} in namespace {namespace!r} is ready")
        pod, target = pods[next(turn) % len(pods)]
        forward = kubernetes_module("stream").portforward(
            core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(target or port)
        )
        return forward.socket(target or port)

    return connect
