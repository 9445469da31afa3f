"""The black-box workload on a database in this process, and what its checkers find in histories that are wrong."""

from __future__ import annotations

import pytest

from tests.blackbox.checking import check
from tests.blackbox.content import COLLECTIONS, State, state_of
from tests.blackbox.events import Events
from tests.blackbox.workload import Workload
from vecraft_db.client.vecraft_client import VecraftClient

Run = tuple[Events, dict[str, dict[str, State]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A few hundred transactions by 16 clients on three shards, and the database at their end."""
    with VecraftClient(root=tmp_path_factory.mktemp("blackbox") / "data", shards=3) as client:
        work = Workload([client], workers=16, target=600, seed=1)
        work.prepare(client)
        work.run()
        work.settle()
        return work.events, contents(client)


def contents(client: VecraftClient) -> dict[str, dict[str, State]]:
    """All records, by collection."""
    return {
        name: {packet.record_id: state for packet in client.scan(name) if (state := state_of(packet)) is not None}
        for name in COLLECTIONS
    }


def test_a_sound_database_passes_and_write_skew_is_seen(run: Run) -> None:
    verdict = check(*run)
    assert verdict.problems == []
    assert verdict.write_skew, "under snapshot isolation it is allowed, and has to be visible to the checker"
    assert all(verdict.checked[kind] > 20 for kind in ("reads", "searches", "counts", "commits", "strong reads"))
