"""``python -m vecraft_db.server`` as a process: what it prints, how it stops, what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from vecraft_data_model import CollectionSchema, DataPacket
from vecraft_db import server
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.json_logs import JsonFormatter


@contextmanager
def running(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "vecraft_db.server", "--embedded", "--root", str(root), "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCRAFT_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, (line, process.communicate(timeout=10))
        yield process, found.group()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_and_the_data_is_there_again(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path / "data", "--api-key", "k1", "--api-key", "k2", "--shards", "2") as (process, url):
        assert httpx.get(f"{url}/collections", timeout=60).status_code == 401
        with VecraftClient(url=url, api_key="k2") as client:
            client.create_collection(CollectionSchema(name="c", dim=2))
            client.insert("c", DataPacket("a", [1, 2]))
            assert len(client.cluster_info()["shards"]) == 2
        process.send_signal(number)
        _, logs = process.communicate(timeout=300)
        assert process.returncode == 0
        lines = [json.loads(line) for line in logs.splitlines()]
        assert lines[-1]["message"] == "stopped" and not any(line["level"] in ("error", "critical") for line in lines)
    with VecraftClient(root=tmp_path / "data") as client:
        assert client.get("c", "a").record_id == "a"


def test_requests_under_way_are_finished(tmp_path: Path) -> None:
    with running(tmp_path / "data") as (process, url):
        httpx.post(f"{url}/collections/c/create", json={"dim": 2}, timeout=60)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as wire:
            body = b'{"where": null}'
            head = b"POST /collections/c/count HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            wire.sendall(head + body[:5])
            httpx.get(f"{url}/healthz", timeout=60)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            wire.sendall(body[5:])
            assert wire.recv(4096).startswith(b"HTTP/1.1 200")
        assert process.wait(300) == 0


def test_what_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert server.main(["--embedded", "--port", "99999"]) == 2
    assert "port" in capsys.readouterr().err
    assert server.main(["--embedded", "--api-key", "a b", "--root", str(tmp_path / "x"), "--port", "0"]) == 1
    assert "API key" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert server.main(["--embedded", "--root", str(tmp_path / "y"), "--port", port]) == 1
    assert port in capsys.readouterr().err and not (tmp_path / "y").exists()
    with VecraftClient(root=tmp_path / "z"):
        assert server.main(["--embedded", "--root", str(tmp_path / "z"), "--port", "0"]) == 1
    assert str(os.getpid()) in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        server.main(["--embedded", "--address", "auto"])
    assert wrong.value.code == 2


def test_log_lines_are_json_whatever_they_hold() -> None:
    import logging

    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "a %s", "args": ("b\n",), "shard": 1})
    line = JsonFormatter().format(record)
    assert "\n" not in line and json.loads(line) | {"message": "a b\n", "shard": 1} == json.loads(line)
    odd = logging.makeLogRecord({"msg": "\ud800", "collection": "\udfff", "what": object()})
    assert json.loads(JsonFormatter().format(odd))["collection"]
