"""The watch of EndpointSlices against a small API server: events, bookmarks, 410, 403, failures; forwarded ports."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_db.client import gateway_watch
from vecraft_db.client.balancing import GatewayPool
from vecraft_db.client.gateway_watch import GatewayWatch, ready_pods, ready_urls
from vecraft_db.client.k8s_aware_vecraft_client import K8sAwareVecraftClient
from vecraft_db.client.port_forward import PortForward
from vecraft_db.config import Settings

kubernetes = pytest.importorskip("kubernetes", reason="the extra 'kubernetes' is not installed")

LIST_PATH = "/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices"
END = object()


def endpoint_slice(name: str, ready: dict[str, bool | None], version: str = "1", **more: Any) -> dict[str, Any]:
    """Return an EndpointSlice as the API server would, one endpoint per address."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "prod", "resourceVersion": version},
        "addressType": "IPv4",
        "ports": [{"name": "metrics", "port": 9090}, {"name": "http", "port": 8000}],
        "endpoints": [
            {"addresses": [address], "conditions": {} if state is None else {"ready": state},
             "targetRef": {"kind": "Pod", "name": f"pod-{address}"}}
            for address, state in ready.items()
        ],
    } | more  # fmt: skip


class ApiServer:
    """A server of one resource: ``slices`` are listed, ``events`` are watched until ``END``; requests are kept."""

    def __init__(self) -> None:
        self.slices: list[dict[str, Any]] = []
        self.events: queue.Queue[Any] = queue.Queue()
        self.refuse_list: int | None = None
        self.requests: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                outer.requests.append({"path": parts.path, **query})
                if "watch" in query:
                    self._watch()
                elif outer.refuse_list is not None:
                    self._answer(
                        outer.refuse_list, {"kind": "Status", "code": outer.refuse_list, "reason": "Forbidden"}
                    )
                else:
                    metadata = {"resourceVersion": str(100 + len(outer.requests))}
                    self._answer(200, {"kind": "EndpointSliceList", "metadata": metadata, "items": outer.slices})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _watch(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while (event := outer.events.get()) is not END:
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: Any) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def send(self, kind: str, thing: dict[str, Any]) -> None:
        """Send a watch event."""
        self.events.put({"type": kind, "object": thing})

    def close(self) -> None:
        """Stop serving."""
        for _ in range(4):
            self.events.put(END)
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig that leads here."""
        path = folder / "kubeconfig"
        context = {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "prod"}}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [context],
                    "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                    "users": [{"name": "test", "user": {}}],
                }
            )
        )
        return path


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An API server with one ready gateway and one that is not."""
    running = ApiServer()
    running.slices = [endpoint_slice("gw-1", {"10.0.0.1": True, "10.0.0.2": False})]
    yield running
    running.close()


@pytest.fixture
def watched(server: ApiServer) -> Iterator[tuple[GatewayPool, GatewayWatch]]:
    """A pool under watch (the test starts it)."""
    configuration = kubernetes.client.Configuration(host=server.url)
    discovery = kubernetes.client.DiscoveryV1Api(kubernetes.client.ApiClient(configuration))
    pool = GatewayPool()
    watch = GatewayWatch(pool, discovery, "prod", "vecraft-gateway", 8000)
    yield pool, watch
    watch.stop()


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def test_the_ready_endpoints_are_listed_and_followed(
    server: ApiServer, watched: tuple[GatewayPool, GatewayWatch]
) -> None:
    pool, watch = watched
    watch.start()
    assert pool.urls() == ["http://10.0.0.1:8000"]
    assert server.requests[0] == {"path": LIST_PATH, "labelSelector": "kubernetes.io/service-name=vecraft-gateway"}
    server.send("MODIFIED", endpoint_slice("gw-1", {"10.0.0.1": False, "10.0.0.2": True}, "2"))
    eventually(lambda: pool.urls() == ["http://10.0.0.2:8000"])
    server.send("ADDED", endpoint_slice("gw-2", {"10.0.0.3": None}, "3"))
    eventually(lambda: set(pool.urls()) == {"http://10.0.0.2:8000", "http://10.0.0.3:8000"})
    server.send("BOOKMARK", {"kind": "EndpointSlice", "metadata": {"resourceVersion": "4"}})
    server.send("DELETED", endpoint_slice("gw-1", {}, "5"))
    eventually(lambda: pool.urls() == ["http://10.0.0.3:8000"])
    watch_request = server.requests[1]
    assert (watch_request["watch"], watch_request["resourceVersion"]) == ("true", "101")
    assert watch_request["allowWatchBookmarks"] == "true"


def test_a_version_that_is_too_old_is_followed_by_a_new_list(
    server: ApiServer, watched: tuple[GatewayPool, GatewayWatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_watch, "PAUSE_SECONDS_MIN", 3600.0)  # at once, not after the pause for other failures
    pool, watch = watched
    watch.start()
    server.slices = [endpoint_slice("gw-9", {"10.0.0.9": True})]
    server.send("ERROR", {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "old"})
    eventually(lambda: pool.urls() == ["http://10.0.0.9:8000"])


def test_a_watch_that_breaks_off_empties_nothing_and_is_taken_up_again(
    server: ApiServer, watched: tuple[GatewayPool, GatewayWatch]
) -> None:
    pool, watch = watched
    watch.start()
    server.refuse_list = 500
    server.events.put(END)
    eventually(lambda: len(server.requests) >= 3)
    assert pool.urls() == ["http://10.0.0.1:8000"]
    server.slices, server.refuse_list = [endpoint_slice("gw-7", {"10.0.0.7": True})], None
    eventually(lambda: pool.urls() == ["http://10.0.0.7:8000"])


def test_without_the_right_to_list_the_dns_name_is_used(
    server: ApiServer, watched: tuple[GatewayPool, GatewayWatch]
) -> None:
    pool, watch = watched
    server.refuse_list = 403
    watch.start()
    assert pool.urls() == ["http://vecraft-gateway.prod.svc:8000"]


def test_another_refusal_is_an_error_that_says_so(server: ApiServer, watched: tuple[GatewayPool, GatewayWatch]) -> None:
    server.refuse_list = 401
    with pytest.raises(ShardUnavailableError, match="answered 401"):
        watched[1].start()


@pytest.mark.parametrize(
    ("more", "urls"),
    [
        ({"ports": [{"name": "https", "port": 8443}]}, ["https://a:8443"]),
        ({"ports": [{"name": "web", "port": 80, "appProtocol": "https"}]}, ["https://a:80"]),
        ({"ports": [{"name": None, "port": 81}]}, ["http://a:81"]),
        ({"ports": []}, []),
        ({"ports": None, "endpoints": None}, []),
        ({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}, ["http://[fd00::1]:8000"]),
    ],
)
def test_addresses_of_a_slice(more: dict[str, Any], urls: list[str]) -> None:
    data = json.dumps(endpoint_slice("s", {"a": True}, **more))
    piece = kubernetes.client.ApiClient().deserialize(data, "V1EndpointSlice", "application/json")
    assert ready_urls([piece]) == urls


def test_the_client_watches_what_a_kubeconfig_leads_to(server: ApiServer, tmp_path: Path) -> None:
    with K8sAwareVecraftClient(kubeconfig=server.kubeconfig(tmp_path), settings=Settings()) as client:
        assert client._watch is not None
        pool = client._watch._pool
        assert pool.urls() == ["http://10.0.0.1:8000"]
        server.send("MODIFIED", endpoint_slice("gw-1", {"10.0.0.8": True}, "2"))
        eventually(lambda: pool.urls() == ["http://10.0.0.8:8000"])


def test_a_url_goes_before_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the argument, or from the file that CONFIG_FILE names; the Kubernetes API is not asked."""
    config = tmp_path / "settings.yaml"
    config.write_text("url: http://gateway.example:8000\nnamespace: prod\n")
    monkeypatch.setenv("CONFIG_FILE", str(config))
    with K8sAwareVecraftClient() as client:
        assert client.engine.describe()["url"] == "http://gateway.example:8000"
    with K8sAwareVecraftClient(url="http://other:1") as client:
        assert client.engine.describe()["url"] == "http://other:1"


def test_outside_of_a_cluster_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidDataException, match=r"give url=, or kubeconfig="):
        K8sAwareVecraftClient(settings=Settings())


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataException, match="kubeconfig cannot be used"):
        K8sAwareVecraftClient(kubeconfig=tmp_path / "missing", settings=Settings())


def test_a_forwarded_port_carries_bytes_both_ways_and_survives_a_failure() -> None:
    """The far end echoes in capitals; the first connection cannot be made."""
    attempts = []

    def connect() -> socket.socket:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionRefusedError("the pod is gone")
        ours, theirs = socket.socketpair()

        def echo() -> None:
            while data := theirs.recv(1000):
                theirs.sendall(data.upper())

        threading.Thread(target=echo, daemon=True).start()
        return ours

    forward = PortForward(connect)
    try:
        with socket.create_connection(("127.0.0.1", forward.port), 5) as first:
            assert first.recv(10) == b""
        with socket.create_connection(("127.0.0.1", forward.port), 5) as second:
            second.sendall(b"hello")
            assert second.recv(10) == b"HELLO"
            forward.close()
            assert second.recv(10) == b""
    finally:
        forward.close()


def test_pods_behind_ready_endpoints() -> None:
    model = kubernetes.client
    endpoint = model.V1Endpoint(
        addresses=["10.0.0.1"], target_ref=model.V1ObjectReference(kind="Pod", name="gw-a"), conditions=None
    )
    other = model.V1Endpoint(addresses=["10.0.0.2"], target_ref=model.V1ObjectReference(kind="Node", name="n"))
    port = model.DiscoveryV1EndpointPort(name="http", port=8000)
    piece = model.V1EndpointSlice(address_type="IPv4", endpoints=[endpoint, other], ports=[port])
    assert ready_pods([piece]) == [("gw-a", 8000)]
