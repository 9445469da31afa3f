"""Finding a cluster's actors and its map: asking again, and not without a Ray to ask. No Ray here."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from vecraft_cluster import cluster
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
    joined = object.__new__(Cluster)
    joined.name = "c"
    with pytest.raises(ShardUnavailableError, match="not connected"):
        joined.fetch_map()


def test_a_lost_question_for_the_map_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [ActorUnavailableError("away", None), ActorUnavailableError("away", None), "the map"]

    def fetch(controller: object, timeout: float) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(cluster, "fetch_membership", fetch)
    assert cluster.ask_membership("the controller", 60.0) == "the map"
    answers.append(ActorUnavailableError("away", None))
    with pytest.raises(ShardUnavailableError, match="went away"):
        cluster.ask_membership("the controller", 0.0)
