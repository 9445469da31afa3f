"""One suite for every kind of client: each test here runs unchanged in every *place* a database can be.

A place is a function that takes an empty directory and yields an open client, registered by name::

    @place("embedded")
    def embedded(directory: Path) -> Iterator[VecraftClient]: ...

A place's client is opened once per test session and shared by all tests, as users share one; so a test takes a
collection of its own (fixture ``name``), and finds out whether something broke what came before it.

``lacks`` names what a place does not offer (yet), and why; a test that needs it says so with
``@pytest.mark.needs("transactions")`` and is skipped there, visibly. ``marks`` go to every test of that place, for
example ``pytest.mark.ray``. ``modules`` runs only those there: where a place differs from another in how messages
travel, and in nothing that they say. ``VECRAFT_PLACES=embedded,memory`` runs the suite in those places only.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gateway_thread import serving

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import CollectionNotExistedException
from vecraft_db.client.async_client import AsyncVecraftClient
from vecraft_db.client.vecraft_client import VecraftClient

Opener = Callable[[Path], Iterator[VecraftClient]]

TIMEOUT_S = 120.0
"""Of every call of these clients that names none: longer than any machine is held up."""


@dataclass(frozen=True)
class Place:
    """Where a database can be: how to open a client there, and what is missing."""

    name: str
    open: Opener
    lacks: dict[str, str]
    marks: tuple[pytest.MarkDecorator, ...]
    modules: tuple[str, ...] = ()


PLACES: dict[str, Place] = {}


def place(
    name: str,
    *,
    lacks: dict[str, str] | None = None,
    marks: tuple[pytest.MarkDecorator, ...] = (),
    modules: tuple[str, ...] = (),
) -> Callable[[Opener], Opener]:
    """Register a place."""

    def register(opener: Opener) -> Opener:
        PLACES[name] = Place(name, opener, lacks or {}, marks, modules)
        return opener

    return register


# ------------------------------------------------------------------------------- asynchronous, seen from here


@contextmanager
def synchronous(make: Callable[[], AsyncVecraftClient]) -> Iterator[VecraftClient]:
    """Drive an asynchronous client, made and used on an event loop of its own, as if it were a ``VecraftClient``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def on_loop() -> AsyncVecraftClient:
        return make()

    client: Any = _Facade(asyncio.run_coroutine_threadsafe(on_loop(), loop).result(), loop)
    try:
        yield client
    finally:
        client.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Facade:
    """Attributes of something asynchronous, awaited: coroutines, context managers and iterators."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    def _adapt(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            return self._adapt(self._wait(value))
        if isinstance(value, AbstractAsyncContextManager | AsyncIterator):
            return _Facade(value, self._loop)
        return value

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._target, attribute)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            if attribute == "run_transaction":
                arguments = (self._as_coroutine(arguments[0]), *arguments[1:])
            return self._adapt(value(*arguments, **named))

        return call

    def _as_coroutine(self, body: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        async def run(transaction: Any) -> Any:
            return await asyncio.to_thread(body, _Facade(transaction, self._loop))

        return run

    def __enter__(self) -> Any:
        return self._adapt(self._target.__aenter__())

    def __exit__(self, *error: Any) -> Any:
        return self._wait(self._target.__aexit__(*error))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._wait(self._target.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


# ------------------------------------------------------------------------------------------------- embedded


@place("embedded")
def embedded(directory: Path) -> Iterator[VecraftClient]:
    """One shard in this process, with files."""
    with VecraftClient(root=directory / "data", timeout=TIMEOUT_S) as client:
        yield client


@place("embedded-3-shards")
def embedded_3_shards(directory: Path) -> Iterator[VecraftClient]:
    """Three shards in this process: every transaction over them is a distributed one."""
    with VecraftClient(root=directory / "data", shards=3, timeout=TIMEOUT_S) as client:
        yield client


@place("memory")
def memory(directory: Path) -> Iterator[VecraftClient]:
    """One shard that leaves no files."""
    with VecraftClient(root=":memory:", timeout=TIMEOUT_S) as client:
        yield client
    assert list(directory.iterdir()) == []


@place("embedded-async")
def embedded_async(directory: Path) -> Iterator[VecraftClient]:
    """The asynchronous client over two shards in this process, driven from this thread."""
    with synchronous(lambda: AsyncVecraftClient(root=directory / "data", shards=2, timeout=TIMEOUT_S)) as client:
        yield client


# --------------------------------------------------------------------------------------------------- on Ray
#
# The session has one Ray (fixture ``ray_session``), started by the first place that needs it; each place has a cluster
# of its own on it, which ends with its client.

ON_RAY: dict[str, Any] = {"address": "local", "shards": 2, "timeout": TIMEOUT_S}


@place("ray", marks=(pytest.mark.ray,))
def ray_router_in_process(directory: Path) -> Iterator[VecraftClient]:
    """Two shard actors, reached over their sockets, the router in this process."""
    with VecraftClient(root=directory / "data", **ON_RAY) as client:
        yield client


@place("ray-actor-calls", marks=(pytest.mark.ray,), modules=("test_records", "test_search", "test_transactions"))
def ray_actor_calls(directory: Path) -> Iterator[VecraftClient]:
    """Two shard actors, reached by actor calls only, the router in this process."""
    with VecraftClient(root=directory / "data", data_plane="actor", **ON_RAY) as client:
        yield client


@place("ray-router-actor", marks=(pytest.mark.ray,))
def ray_router_actor(directory: Path) -> Iterator[VecraftClient]:
    """Two shard actors, the router an actor too."""
    with VecraftClient(root=directory / "data", via_router_actor=True, **ON_RAY) as client:
        yield client


@place("ray-async", marks=(pytest.mark.ray,))
def ray_async(directory: Path) -> Iterator[VecraftClient]:
    """Two shard actors, the router on an event loop, driven from this thread."""
    with synchronous(lambda: AsyncVecraftClient(root=directory / "data", **ON_RAY)) as client:
        yield client


# --------------------------------------------------------------------------------------------------- over REST
#
# A real uvicorn on the loopback interface, in front of an embedded database of two shards.

_NO_BACKUP = {"backup": "a gateway does not write files for its clients"}


@place("rest", lacks=_NO_BACKUP)
def rest(directory: Path) -> Iterator[VecraftClient]:
    """The REST client, with an API key."""
    with serving(["k-1"], root=str(directory / "data"), shards=2) as url:
        with VecraftClient(url=url, api_key="k-1", timeout=TIMEOUT_S) as client:
            yield client


@place("rest-async", lacks=_NO_BACKUP)
def rest_async(directory: Path) -> Iterator[VecraftClient]:
    """The asynchronous REST client, driven from this thread."""
    with serving(root=str(directory / "data"), shards=2) as url:
        with synchronous(lambda: AsyncVecraftClient(url=url, timeout=TIMEOUT_S)) as client:
            yield client


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(what): the test needs something that not every place offers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "where_it_runs" not in metafunc.fixturenames:
        return
    chosen = [name for name in os.environ.get("VECRAFT_PLACES", "").split(",") if name] or list(PLACES)
    module = metafunc.module.__name__.rpartition(".")[2]
    chosen = [name for name in chosen if not PLACES[name].modules or module in PLACES[name].modules]
    parameters = [pytest.param(PLACES[name], id=name, marks=PLACES[name].marks) for name in chosen]
    metafunc.parametrize("where_it_runs", parameters, indirect=True, scope="session")


@pytest.fixture(scope="session")
def where_it_runs(request: pytest.FixtureRequest) -> Place:
    found = request.param
    assert isinstance(found, Place)
    if pytest.mark.ray in found.marks:
        request.getfixturevalue("ray_session")
    return found


@pytest.fixture(scope="session")
def shared_client(where_it_runs: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VecraftClient]:
    with contextmanager(where_it_runs.open)(tmp_path_factory.mktemp(where_it_runs.name)) as client:
        yield client


@pytest.fixture
def client(shared_client: VecraftClient, where_it_runs: Place, request: pytest.FixtureRequest) -> VecraftClient:
    """The client of this place."""
    for marker in request.node.iter_markers("needs"):
        for what in marker.args:
            if what in where_it_runs.lacks:
                pytest.skip(f"{where_it_runs.name}: {where_it_runs.lacks[what]}")
    return shared_client


_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """A collection name that nobody used before."""
    return f"c{next(_numbers)}-{os.getpid()}"


@pytest.fixture
def collection(client: VecraftClient, name: str) -> Iterator[str]:
    """The name of a fresh collection: 4 dimensions, l2. It is dropped afterwards: checkpoints take a while per each."""
    client.create_collection(CollectionSchema(name=name, dim=4))
    yield name
    with suppress(CollectionNotExistedException):
        client.drop_collection(name)


@pytest.fixture
def make(client: VecraftClient, name: str) -> Callable[..., str]:
    """Make further collections: ``make(dim=8, metric="cosine")`` returns the name."""
    numbers = itertools.count()

    def create(**settings: Any) -> str:
        fields: dict[str, Any] = {"name": f"{name}.{next(numbers)}", "dim": 4} | settings
        schema = CollectionSchema(**fields)
        client.create_collection(schema)
        return schema.name

    return create


_GOOD = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture
def guarded(client: VecraftClient, collection: str) -> Iterator[str]:
    """A collection with one record, which a bad request must not change, and which answers afterwards."""
    client.insert(collection, DataPacket("good", _GOOD, {"x": 1}, "text"))
    yield collection
    assert [packet.record_id for packet in client.scan(collection)] == ["good"]
    hits = client.search(collection, QueryPacket(_GOOD, k=5))
    assert [(hit.record_id, hit.distance, hit.metadata) for hit in hits] == [("good", 0.0, {"x": 1})]
    client.insert(collection, DataPacket("next", _GOOD))
    assert client.count(collection) == 2
