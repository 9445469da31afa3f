"""A gateway in front of a database in memory: one per session, with two collections that nobody changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from vecraft_db.client.engine import Engine
from vecraft_db.client.opening import open_engine
from vecraft_db.config import Settings
from vecraft_db.server import gateway_app

SETTINGS: dict[str, Any] = {"root": ":memory:", "shards": 2, "max_body_bytes": 16 << 20}
RECORDS = 20


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    opened = open_engine(Settings.load({}, **SETTINGS))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def app(engine: Engine) -> FastAPI:
    made = gateway_app(engine, Settings.load({}, **SETTINGS))
    assert isinstance(made, FastAPI)
    return made


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30) as client:
        if (await client.get("/collections/c")).status_code == 404:
            await _fill(client)
        yield client


async def _fill(client: httpx.AsyncClient) -> None:
    for name, metric in (("c", "l2"), ("cos", "cosine")):
        made = await client.post(f"/collections/{name}/create", json={"dim": 4, "metric": metric})
        assert made.status_code == 201
        packets = [
            {
                "record_id": f"r{i:02}",
                "vector": [i + 1, 1, 0, 0.5],
                "metadata": {"i": i, "even": i % 2 == 0},
                "document": f"text {i}",
            }
            for i in range(RECORDS)
        ]
        assert (await client.post(f"/collections/{name}/upsert", json={"packets": packets})).status_code == 200


@pytest.fixture
async def unharmed(api: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client for what is refused: afterwards all is as before, and the next good request is answered."""
    before = await _state(api)
    yield api
    assert await _state(api) == before
    good = await api.post("/collections/c/search", json={"query": {"query_vector": [3, 1, 0, 0.5], "k": 1}})
    assert [hit["record_id"] for hit in good.json()] == ["r02"]


async def _state(api: httpx.AsyncClient) -> list[Any]:
    names = [schema["name"] for schema in (await api.get("/collections")).json()]
    scans = [(await api.post(f"/collections/{name}/scan", json={})).json()["records"] for name in names]
    return [names, scans]
