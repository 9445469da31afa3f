"""Links that are cut in the middle of a message: calls end or succeed, and nothing happens twice, however late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from cuttable_proxy import CuttableProxy, Direction
from ray_workbench import PATIENCE_S, eventually, insist, take_off, version_of

import vecraft_cluster.bridge
from vecraft_cluster.credentials import Endpoint
from vecraft_cluster.launch import Cluster
from vecraft_cluster.ports import Directory, endpoint_of
from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, WriteConflictException
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.vecraft_client import VecraftClient

VECTORS = np.random.default_rng(11).normal(size=(40, 4)).astype(np.float32)
IDS = [f"r{number}" for number in range(40)]
TOO_LATE = (ShardUnavailableError, TimeoutException)


@pytest.fixture
def links() -> Iterator[list[CuttableProxy]]:
    """One for each shard."""
    links = [CuttableProxy(), CuttableProxy()]
    yield links
    for link in links:
        link.close()


@pytest.fixture
def far_client(
    cluster: Cluster, links: list[CuttableProxy], monkeypatch: pytest.MonkeyPatch
) -> Iterator[VecraftClient]:
    """A client whose connections to shards lead over those links."""

    def over_links(directory: Directory, name: str) -> Callable[[Callable[[], bool]], Endpoint]:
        ask = endpoint_of(directory, name)

        def asked(given_up: Callable[[], bool]) -> Endpoint:
            endpoint = ask(given_up)
            links[endpoint.shard].target = (endpoint.host, endpoint.port)
            return msgspec.structs.replace(endpoint, host="127.0.0.1", port=links[endpoint.shard].port)

        return asked

    monkeypatch.setattr(vecraft_cluster.bridge, "endpoint_of", over_links)
    with VecraftClient(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as client:
        yield client


def write(client: VecraftClient, version: int, txn_id: str, timeout: float | None = None) -> int:
    """Give all records a version, on both shards at once; returns the commit's timestamp."""
    metadatas = [{"version": version}] * len(IDS)
    return client.upsert("cut", ids=IDS, vectors=VECTORS, metadatas=metadatas, txn_id=txn_id, timeout=timeout).commit_ts


def settle_under_id(client: VecraftClient, asked: str) -> int | None:
    """Ask what became of the write of version 1: the timestamp of its commit, or None if it was given up for good.

    That its shards have given it up is right, too: they do so when nobody comes back to them for a second.
    """
    try:
        return insist(lambda: write(client, 1, asked))
    except WriteConflictException:
        return None


def versions(client: VecraftClient) -> set[int | None]:
    """Those of all records."""
    return {version_of(packet) for packet in client.get_many("cut", IDS, consistency="strong")}


@pytest.mark.parametrize("hang_up", [False, True], ids=["silent", "broken"])
@pytest.mark.parametrize("direction", ["there", "back"])
@pytest.mark.parametrize("after", [0, 100])
def test_a_link_cut_in_the_middle_of_a_message(
    client: VecraftClient,
    far_client: VecraftClient,
    links: list[CuttableProxy],
    direction: Direction,
    hang_up: bool,
    after: int,
) -> None:
    client.create_collection(CollectionSchema(name="cut", dim=4), if_not_exists=True)
    write(client, 0, new_txn_id())
    take_off(far_client)
    for link in links:
        link.cut(direction, after=after, hang_up=hang_up)
    asked, told, outcome = new_txn_id(), 0, "committed"
    try:
        told = write(far_client, 1, asked, timeout=1.5)
    except (*TOO_LATE, WriteConflictException) as error:
        outcome = error.details["outcome"]
        assert error.details["txn_id"] == asked and outcome in ("unknown", "aborted")
    if hang_up:
        assert far_client.count("cut") == len(IDS), "a call that broke off is repeated as an actor call"

    def met() -> bool:
        """Whether both cuts have stopped something."""
        with suppress(*TOO_LATE):  # what is behind a silent cut is given up
            assert far_client.count("cut", timeout=0.5) == len(IDS)
        return all(link.stopped_bytes for link in links)

    eventually(met, "something to be stopped on both links")
    # Somebody whose link is whole asks what became of it, under the same id: that settles it, once and for all.
    settled = settle_under_id(client, asked)
    assert told == settled if outcome == "committed" else outcome == "unknown" or settled is None
    assert versions(client) == ({0} if settled is None else {1})
    write(client, 2, new_txn_id())
    for link in links:
        link.heal()  # and what was held up arrives: it is out of date, and must change nothing
    take_off(far_client)
    assert versions(far_client) == {2} == versions(client)
    assert settle_under_id(far_client, asked) == settled, "asked again it is told again, not done again"
    assert versions(far_client) == {2} == versions(client)
