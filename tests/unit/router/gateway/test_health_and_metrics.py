"""Readiness and metrics tell what is so at this moment, shard by shard."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vecraft_data_model.errors import ERRORS_BY_CODE, ShardUnavailableError, TimeoutException
from vecraft_data_model.messages import Refused, StatusReply
from vecraft_db.client.engine import Engine as ClientEngine
from vecraft_router.gateway.app import create_app
from vecraft_router.gateway.context import Engine
from vecraft_router.gateway.problems import STATUS_BY_CODE


class Runner:
    """Runs flows, but answers ``status`` with whatever a test puts here."""

    def __init__(self, engine: ClientEngine) -> None:
        self._engine = engine
        self.replies: dict[int, object] | None = None
        self.fault: BaseException | None = None

    async def run(self, flow: Any) -> Any:
        if self.fault is not None:
            flow.close()
            raise self.fault
        if self.replies is not None and flow.__name__ == "status":
            flow.close()
            return self.replies
        return await self._engine.run_async(flow)


@pytest.fixture
def runner(engine: ClientEngine) -> Runner:
    return Runner(engine)


@pytest.fixture
async def gateway(engine: ClientEngine, runner: Runner) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Engine(engine.router, runner, engine.router.state.clock, engine.tokens))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


def up(shard: int, **figures: float) -> StatusReply:
    return StatusReply(shard=shard, epoch=2, lsn=10 + shard, figures=figures, collections={"c": 5 + shard})


async def test_ready_while_every_shard_answers(gateway: httpx.AsyncClient, runner: Runner) -> None:
    assert (await gateway.get("/readyz")).status_code == 200
    down = Refused(ShardUnavailableError("shard 1 is restarting", shard=1))
    runner.replies = {0: up(0), 1: down, 2: Refused(TimeoutException("shard 2 did not answer", shard=2))}
    answer = await gateway.get("/readyz")
    assert answer.status_code == 503 and answer.json()["code"] == "shard_unavailable"
    assert answer.json()["details"] == {"shards": [1, 2]} and "shard 1 is restarting" in answer.json()["detail"]
    assert (await gateway.get("/healthz")).status_code == 200  # the process answers all the same
    runner.replies = {0: up(0), 1: up(1), 2: up(2)}
    assert (await gateway.get("/readyz")).status_code == 200


async def test_metrics_of_every_shard(gateway: httpx.AsyncClient, runner: Runner) -> None:
    runner.replies = {
        0: up(0, wal_bytes=100, conflicts_total=3),
        1: up(1, wal_bytes=50, conflicts_total=0),
        2: Refused(ShardUnavailableError("gone", shard=2)),
    }
    answer = await gateway.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}

    def values(name: str) -> dict[str, float]:
        return {sample.labels["shard"]: sample.value for sample in families[name].samples}

    assert values("vecraft_wal_bytes") == {"0": 100, "1": 50} and families["vecraft_wal_bytes"].type == "gauge"
    assert values("vecraft_conflicts") == {"0": 3, "1": 0} and families["vecraft_conflicts"].type == "counter"
    assert values("vecraft_shard_up") == {"0": 1, "1": 1, "2": 0}
    (size,) = families["vecraft_collection_size"].samples
    assert size.labels == {"collection": "c"} and size.value == 11


async def test_the_recall_of_a_collection_is_that_of_its_shards_by_their_rows(
    gateway: httpx.AsyncClient, runner: Runner
) -> None:
    runner.replies = {
        0: StatusReply(0, 1, 5, {}, {"c": 300, "small": 7}, {"c": (0.96, 0.94, 0.98)}),
        1: StatusReply(1, 1, 5, {}, {"c": 100, "small": 7}, {"c": (1.0, 0.98, 1.0)}),
    }
    families = {f.name: f for f in text_string_to_metric_families((await gateway.get("/metrics")).text)}
    told = {}
    for name in ("vecraft_recall_estimate", "vecraft_recall_estimate_low", "vecraft_recall_estimate_high"):
        (sample,) = families[name].samples
        assert sample.labels == {"collection": "c"}, "nothing is told of what was not measured"
        told[name.removeprefix("vecraft_recall_")] = sample.value
    assert told == pytest.approx({"estimate": 0.97, "estimate_low": 0.95, "estimate_high": 0.985})


async def test_every_family_is_told_once_by_real_shards(gateway: httpx.AsyncClient) -> None:
    text = (await gateway.get("/metrics")).text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    told = {name.removesuffix("_total") for name in names}
    assert "process_resident_memory_bytes" in told
    for figure in ("wal_bytes", "tail_rows", "index_rows", "dead_rows", "prepared_transactions"):
        assert f"vecraft_{figure}" in told


async def test_the_gateways_own_counters(gateway: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    query = {"query": {"query_vector": [1, 2, 3, 4]}}
    for _ in range(3):
        assert (await gateway.post("/collections/c/search", json=query)).status_code == 200
    assert (await gateway.post("/collections/c/search", json={})).status_code == 400
    assert (await gateway.get("/collections/c/records/r01")).status_code == 200
    lines = (await gateway.get("/metrics")).text.splitlines()
    assert "vecraft_search_total 3.0" in lines and "vecraft_search_latency_count 3.0" in lines
    assert (
        "vecraft_get_total 1.0" in lines and "vecraft_insert_total 0.0" in lines and "vecraft_delete_total 0.0" in lines
    )
    assert 'vecraft_http_requests_total{method="POST",status="400"} 1.0' in lines


async def test_a_defect_is_logged_and_not_told(
    gateway: httpx.AsyncClient, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    runner.fault = RuntimeError("secret /etc/path")
    answer = await gateway.get("/collections", headers={"X-Request-Id": "find-me"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text and "find-me" in answer.json()["detail"]
    assert "secret /etc/path" in caplog.text
    runner.fault = None
    assert (await gateway.get("/collections")).status_code == 200


async def test_every_error_has_a_status(gateway: httpx.AsyncClient, runner: Runner) -> None:
    assert set(STATUS_BY_CODE) == set(ERRORS_BY_CODE)
    for code, error in ERRORS_BY_CODE.items():
        runner.fault = error("what happened", shard=3, odd={"\ud800": object()})
        answer = await gateway.get("/collections")
        assert answer.status_code == STATUS_BY_CODE[code] and answer.json()["code"] == code
        assert answer.json()["detail"] == "what happened"
        assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
    for code, number in (("storage_failure", errno.ENOSPC), ("storage_failure", errno.EDQUOT), ("storage_full", 0)):
        runner.fault = ERRORS_BY_CODE[code]("disk full", errno=number)
        assert (await gateway.get("/collections")).status_code == 507
