"""A shard that begins in an empty directory: the controller knows of it before anybody is answered. No Ray here."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from vecraft_cluster.ports import decode, encode
from vecraft_cluster.shard_actor import ShardActor, ShardPlan
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, BatchReply, Status
from vecraft_shard.config import ShardConfig

PATIENCE_S = 60.0


class Controller:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.told = threading.Event()
        self.answers = threading.Event()
        self.fails: VecraftError | None = None

    def ask(self, method: str, *arguments: Any) -> Any:
        self.asked.append((method, arguments))
        if method == "begun":
            self.told.set()
            assert self.answers.wait(PATIENCE_S)
            if self.fails is not None:
                raise self.fails
        return False


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    made = Controller()
    monkeypatch.setattr(ShardActor, "_ask_controller", lambda self, *asked: made.ask(*asked))
    return made


def start(root: Path) -> ShardActor:
    return ShardActor(ShardPlan("c", 0, str(root), ShardConfig(), sockets=False))


def ask(actor: ShardActor, timeout: float) -> object:
    return decode(actor.execute(encode((timeout, Batch([Status()])))))


def test_nobody_is_answered_before_the_controller_knows(controller: Controller, tmp_path: Path) -> None:
    actor = start(tmp_path)
    assert controller.told.wait(PATIENCE_S)
    assert isinstance(ask(actor, 0.05), TimeoutException)
    controller.answers.set()
    assert isinstance(ask(actor, PATIENCE_S), BatchReply)
    assert controller.asked == [("peopled", ()), ("begun", (0,))]
    actor.close()


def test_a_controller_that_does_not_answer_leaves_a_directory_that_the_next_process_opens(
    controller: Controller, tmp_path: Path
) -> None:
    controller.fails = ShardUnavailableError("the controller does not answer")
    controller.answers.set()
    actor = start(tmp_path)
    refused = ask(actor, PATIENCE_S)
    assert isinstance(refused, ShardUnavailableError) and "controller" in refused.message
    following = start(tmp_path)
    assert isinstance(ask(following, PATIENCE_S), BatchReply), "the directory was let go"
    following.close()
