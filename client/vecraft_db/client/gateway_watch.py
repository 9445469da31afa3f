"""Which gateways are ready, from the Kubernetes API: the EndpointSlices of their service, listed, then watched.

    list ──▶ pool ──▶ watch from the list's version ──▶ pool after every event
     ▲                     │ 410, the version is too old       → list again at once
     └─────────────────────┘ any other end or failure          → list again after a pause that grows to 30 s

A failure never empties the pool: what was known stays until something newer is. Only the first list may fail to the
caller; without the right to list (403) the service's DNS name takes the place of its endpoints, for good.

The official client has an informer too. It reconnects without a pause after an error, and its ``stop`` waits for the
next event, which may never come; so the loop here is our own. ``kubernetes`` is the extra of that name, imported when
needed (it takes most of a second).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

from vecraft_data_model.errors import ShardUnavailableError, VecraftError
from vecraft_db.client.balancing import GatewayPool

WATCH_SECONDS = 240
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.5, 30.0
SERVICE_LABEL = "kubernetes.io/service-name"

log = logging.getLogger(__name__)


def kubernetes_module(name: str = "client") -> Any:
    """Import a module of the official client.

    Raises:
        VecraftError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"kubernetes.{name}")
    except ImportError as error:
        raise VecraftError(
            "finding gateways through Kubernetes needs its client: pip install 'vecraftdb[kubernetes]'"
        ) from error


def ready_urls(slices: Iterable[Any]) -> list[str]:
    """Return the URL of each ready endpoint of a service's EndpointSlices, sorted.

    The port is the one named ``http`` or ``https``, else the first; that name or its application protocol also say
    which of the two it speaks.
    """
    urls = set()
    for piece in slices:
        port = _port_of(piece)
        if port is None:
            continue
        scheme = "https" if "https" in (port.name, port.app_protocol) else "http"
        for endpoint in _ready(piece):
            for address in endpoint.addresses or []:
                host = f"[{address}]" if piece.address_type == "IPv6" else address
                urls.add(f"{scheme}://{host}:{port.port}")
    return sorted(urls)


def ready_pods(slices: Iterable[Any]) -> list[tuple[str, int | None]]:
    """Return name and port of each pod among the ready endpoints, sorted."""
    pods: dict[str, int | None] = {}
    for piece in slices:
        port = _port_of(piece)
        for endpoint in _ready(piece):
            if endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod":
                pods[endpoint.target_ref.name] = None if port is None else port.port
    return sorted(pods.items())


def _port_of(piece: Any) -> Any:
    ports = [port for port in piece.ports or [] if port.port]
    return next((port for port in ports if port.name in ("http", "https")), ports[0] if ports else None)


def _ready(piece: Any) -> list[Any]:
    """Return the ready endpoints; one that does not say is ready (so the API defines it)."""
    return [each for each in piece.endpoints or [] if each.conditions is None or each.conditions.ready is not False]


class GatewayWatch:
    """Keeps a pool equal to the ready gateways of a service, on a thread of its own.

    Args:
        pool: To keep.
        discovery: A ``DiscoveryV1Api``.
        namespace: Of the service.
        service: Its name.
        port: Of the service, for its DNS name.
    """

    def __init__(self, pool: GatewayPool, discovery: Any, namespace: str, service: str, port: int) -> None:
        self._pool = pool
        self._discovery = discovery
        self._namespace, self._service, self._port = namespace, service, port
        self._stopped = threading.Event()
        self._stream: Any = None
        self._slices: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """List once, then watch in the background.

        Raises:
            ShardUnavailableError: The API server cannot be asked, or refuses in another way than by 403.
        """
        exceptions = kubernetes_module("client.exceptions")
        try:
            version = self._list()
        except exceptions.ApiException as error:
            if error.status != 403:
                raise ShardUnavailableError(
                    f"the Kubernetes API answered {error.status} {error.reason} to a list of EndpointSlices "
                    f"in namespace {self._namespace!r}"
                ) from error
            url = f"http://{self._service}.{self._namespace}.svc:{self._port}"
            log.warning("no right to list EndpointSlices in %s (403): using %s", self._namespace, url)
            self._pool.replace([url])
            return
        except Exception as error:  # urllib3's many kinds
            raise ShardUnavailableError(f"the Kubernetes API cannot be reached: {error}") from error
        self._thread = threading.Thread(target=self._run, args=(version,), name="vecraft-gateways", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch. The thread may take until the API server's next word to notice; it holds nothing meanwhile."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.stop()

    def _selector(self) -> dict[str, str]:
        return {"namespace": self._namespace, "label_selector": f"{SERVICE_LABEL}={self._service}"}

    def _list(self) -> str:
        answer = self._discovery.list_namespaced_endpoint_slice(**self._selector())
        self._slices = {piece.metadata.name: piece for piece in answer.items}
        self._pool.replace(ready_urls(self._slices.values()))
        return str(answer.metadata.resource_version)

    def _run(self, version: str | None) -> None:
        exceptions = kubernetes_module("client.exceptions")
        pause = PAUSE_SECONDS_MIN
        while not self._stopped.is_set():
            try:
                version = version or self._list()
                self._follow(version)
                version, pause = None, PAUSE_SECONDS_MIN
            except exceptions.ApiException as error:
                version = None
                if error.status == 410:
                    continue
                log.warning("watch of EndpointSlices: %s %s; again in %.1f s", error.status, error.reason, pause)
                pause = self._rest(pause)
            except Exception:  # urllib3's many kinds: whatever it is, the pool keeps what is known
                version = None
                if self._stopped.is_set():
                    return
                log.warning("watch of EndpointSlices broke off; again in %.1f s", pause, exc_info=True)
                pause = self._rest(pause)

    def _rest(self, pause: float) -> float:
        self._stopped.wait(pause)
        return min(2 * pause, PAUSE_SECONDS_MAX)

    def _follow(self, version: str) -> None:
        """Apply events until the server ends the watch."""
        self._stream = kubernetes_module("watch").Watch()
        events = self._stream.stream(
            self._discovery.list_namespaced_endpoint_slice,
            **self._selector(),
            resource_version=version,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_SECONDS,
        )
        for event in events:
            if self._stopped.is_set():
                return
            if event["type"] in ("ADDED", "MODIFIED"):
                self._slices[event["object"].metadata.name] = event["object"]
            elif event["type"] == "DELETED":
                self._slices.pop(event["object"].metadata.name, None)
            else:
                continue
            self._pool.replace(ready_urls(self._slices.values()))
