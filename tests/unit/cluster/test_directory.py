"""Finding actors: only where there is a Ray to find them on. No Ray here."""

from __future__ import annotations

import pytest
import ray

from vecraft_cluster.cluster import Cluster
from vecraft_cluster.ports import Directory, look_up
from vecraft_data_model.errors import ShardUnavailableError


def test_after_the_end_of_the_connection_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is sent late, by a thread that is still there, must not make Ray start a new Ray."""

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("Ray was asked, and begins with starting itself")

    monkeypatch.setattr(ray, "get_actor", started)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    directory = Directory()
    directory._handles["vecraft:c:shard-0000"] = object()
    assert directory.known("vecraft:c:shard-0000") is None
    for name in ("vecraft:c:shard-0000", "vecraft:c:shard-0001"):
        with pytest.raises(ShardUnavailableError, match="not connected") as refusal:
            directory.find(name)
        assert refusal.value.details["outcome"] == "not done"
    with pytest.raises(ShardUnavailableError, match="not connected"):
        look_up("vecraft:c:controller")
    cluster = object.__new__(Cluster)
    cluster.name = "c"
    with pytest.raises(ShardUnavailableError, match="not connected"):
        cluster.fetch_map()
