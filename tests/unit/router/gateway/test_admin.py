"""Backups over REST, confined to where the operator lets them be; documentation that needs no internet."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_thread import serving

from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import InvalidDataException
from vecraft_db.backups import read_backup
from vecraft_db.client.opening import open_engine
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.config import Settings
from vecraft_db.server import gateway_app


@asynccontextmanager
async def gateway(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    loaded = Settings.load({}, **settings)
    engine = await asyncio.to_thread(open_engine, loaded)
    try:
        transport = httpx.ASGITransport(gateway_app(engine, loaded))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:
            yield client
    finally:
        await asyncio.to_thread(engine.close)


def files_below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")}


async def test_a_backup_is_written_where_the_operator_lets_it_be(tmp_path: Path) -> None:
    place = tmp_path / "backups"
    async with gateway(root=str(tmp_path / "data"), backup_dir=str(place)) as api:
        await api.post("/collections/c/create", json={"dim": 2})
        await api.post("/collections/c/upsert", json={"ids": ["a"], "vectors": [[1, 2]]})
        made = await api.post("/admin/backup", json={"path": "nightly"})
        assert made.status_code == 201, made.text
        assert made.json()["path"] == str(place / "nightly")
        unnamed = await api.post("/admin/backup")
        assert unnamed.status_code == 201
        by_path = await api.post("/admin/backup", json={"path": str(place / "weekly")})
        assert by_path.status_code == 201
        again = await api.post("/admin/backup", json={"path": "nightly"})
        assert (again.status_code, again.json()["code"]) == (400, "invalid_argument")
        assert "not empty" in again.json()["detail"]
    for name in ("nightly", "weekly", Path(unnamed.json()["path"]).name):
        assert read_backup(place / name)["shards"] == 1
    with VecraftClient(root=tmp_path / "other") as client:
        client.restore(place / "nightly")
        assert client.get("c", "a").record_id == "a"


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../x", "a/b", "/etc", "/etc/x", "a\0b", "-x", ".hidden", "ü", "x" * 129, "a\\b", 7, ["a"],
     "\ud800", "{dir}/../x", "{dir}/", "{dir}", "{dir}x", "{dir}//x", "{dir}/a/b"],
)  # fmt: skip
async def test_no_backup_is_written_anywhere_else(tmp_path: Path, path: Any) -> None:
    place = tmp_path / "backups"
    place.mkdir()
    given = path.replace("{dir}", str(place)) if isinstance(path, str) else path
    async with gateway(root=str(tmp_path / "data"), backup_dir=str(place)) as api:
        before = files_below(tmp_path)
        refused = await api.post("/admin/backup", content=json.dumps({"path": given}))
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
        assert files_below(tmp_path) == before
        assert (await api.post("/admin/backup", json={"directory": "/tmp"})).status_code == 400
        assert (await api.get("/healthz")).status_code == 200


async def test_without_a_place_for_them_no_backups_are_written(tmp_path: Path) -> None:
    async with gateway(root=str(tmp_path / "data")) as api:
        refused = await api.post("/admin/backup", json={"path": "nightly"})
        assert refused.status_code == 400
        assert "VCRAFT_BACKUP_DIR" in refused.json()["detail"]
    async with gateway(root=":memory:", backup_dir=str(tmp_path / "b")) as api:
        refused = await api.post("/admin/backup")
        assert refused.status_code == 400
        assert "memory" in refused.json()["detail"]
    assert not (tmp_path / "b").exists()


def test_the_client_has_backups_written_too(tmp_path: Path) -> None:
    place = tmp_path / "backups"
    with serving(root=str(tmp_path / "data"), backup_dir=str(place)) as url, VecraftClient(url=url) as client:
        client.create_collection(CollectionSchema(name="c", dim=2))
        assert client.backup("nightly")["shards"] == 1
        assert read_backup(place / "nightly")["files"]
        with pytest.raises(InvalidDataException, match="one name"):
            client.backup("../x")
        with pytest.raises(InvalidDataException, match="where the files are"):
            client.restore("nightly")
        assert client.list_collections()


async def test_the_documentation_needs_no_internet(api: httpx.AsyncClient) -> None:
    page = await api.get("/docs")
    assert page.status_code == 200
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(links) == 3
    assert "://" not in page.text
    for link in links:
        file = await api.get(link)
        assert file.status_code == 200
        assert len(file.content) > 1000
    assert "/openapi.json" in page.text
    for bad in ("/docs/files/nothing.js", "/docs/files/%2e%2e/core.py", "/docs/files/../core.py", "/docs/files/"):
        assert (await api.get(bad)).status_code == 404


async def test_the_documentation_needs_no_key() -> None:
    loaded = Settings.load({}, root=":memory:")
    engine = await asyncio.to_thread(open_engine, loaded)
    try:
        transport = httpx.ASGITransport(gateway_app(engine, loaded, ["s3cret"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as closed:
            for path in ("/docs", "/docs/files/swagger-ui-bundle.js", "/docs/files/swagger-ui.css"):
                assert (await closed.get(path)).status_code == 200
            assert (await closed.post("/admin/backup")).status_code == 401
    finally:
        await asyncio.to_thread(engine.close)
