"""A router behind an actor: what is sent there, what comes back, and whose clock the deadlines go by. No Ray here."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from vecraft_cluster.ports import decode, encode, unwrap
from vecraft_cluster.remote import (
    REMOTE_METHODS,
    RemoteRouter,
    RouterCall,
    deadline_of,
    incoming,
    outgoing,
)
from vecraft_cluster.root import SystemClock
from vecraft_cluster.router_actor import RouterActor, RouterPlan, rebase
from vecraft_data_model.errors import (
    InvalidDataException,
    RecordNotFoundError,
    ShardUnavailableError,
    TimeoutException,
    WriteConflictException,
)
from vecraft_data_model.hlc import timestamp
from vecraft_data_model.placement import initial_map
from vecraft_data_model.search_options import SearchOptions
from vecraft_router.config import RouterConfig
from vecraft_router.effects import Sleep
from vecraft_router.options import ReadOptions
from vecraft_router.router import Router

QUERY = np.ones((1, 4), dtype=np.float32)


def remote_router() -> RemoteRouter:
    return RemoteRouter(initial_map(2), SystemClock(), random.Random(1), RouterConfig(timeout_s=3))


def first_call(flow: Any) -> RouterCall:
    """What a remote router's flow yields first."""
    call = next(flow)
    assert isinstance(call, RouterCall)
    return call


def test_every_method_of_a_router_that_asks_shards_can_be_called_remotely() -> None:
    router = remote_router()
    deadline = time.monotonic() + 1
    flows: dict[str, Any] = {
        "commit": router.commit([], deadline=deadline),
        "delete_where": router.delete_where("c"),
        "resolve": router.resolve("t"),
        "get": router.get("c", ["a"]),
        "search": router.search("c", QUERY, SearchOptions(k=3)),
        "scan_page": router.scan_page("c"),
        "count": router.count("c"),
        "list_collections": router.list_collections(),
        "describe": router.describe("c"),
        "choose_snapshot": router.choose_snapshot(),
        "pin": router.pin(ttl_ms=1000),
        "release": router.release("p"),
        "set_ef": router.set_ef("c", 10),
        "checkpoint": router.checkpoint(),
        "status": router.status(),
    }
    assert set(flows) == REMOTE_METHODS
    for method, flow in flows.items():
        call = first_call(flow)
        assert call.method == method
        # What is sent is what a router there takes.
        args, kwargs = rebase(call.args, call.kwargs, 1.0)
        getattr(Router(initial_map(2), SystemClock(), random.Random(1)), method)(*args, **kwargs).close()
        with pytest.raises(StopIteration) as result:
            flow.send("the answer")
        assert result.value.value == "the answer"


def test_a_commit_that_is_lost_with_its_router_is_sent_again_under_the_same_id() -> None:
    flow = remote_router().commit([])
    first = first_call(flow)
    pause = flow.throw(ShardUnavailableError("router 0 went away during the call", outcome="unknown"))
    assert isinstance(pause, Sleep)
    again = flow.send(None)
    assert isinstance(again, RouterCall)
    assert again.kwargs["txn_id"] == first.kwargs["txn_id"]
    with pytest.raises(StopIteration):
        flow.send("committed")


def test_a_read_that_is_lost_with_its_router_is_sent_again_until_its_deadline() -> None:
    away = ShardUnavailableError("router 0 went away during the call", outcome="unknown")
    flow = remote_router().count("c")
    first = first_call(flow)
    assert isinstance(flow.throw(away), Sleep)
    assert flow.send(None) is first
    late = remote_router().count("c", options=ReadOptions(deadline=time.monotonic()))
    first_call(late)
    with pytest.raises(ShardUnavailableError):
        late.throw(away)


def test_a_deletion_by_filter_that_is_lost_with_its_router_is_not_sent_again() -> None:
    flow = remote_router().delete_where("c")
    first_call(flow)
    with pytest.raises(ShardUnavailableError):
        flow.throw(ShardUnavailableError("router 0 went away during the call", outcome="unknown"))


def test_a_commit_whose_outcome_stays_unknown_names_the_id_to_ask_with() -> None:
    flow = remote_router().commit([], deadline=time.monotonic())
    call = first_call(flow)
    with pytest.raises(TimeoutException, match="at most once") as unknown:
        flow.throw(TimeoutException("router 0 did not answer in time"))
    assert unknown.value.details["txn_id"] == call.kwargs["txn_id"]
    assert unknown.value.details["outcome"] == "unknown"


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_an_aborted_attempt_is_followed_by_one_with_another_id_unless_it_was_chosen(chosen: str | None) -> None:
    flow = remote_router().commit([], txn_id=chosen)
    first = first_call(flow)
    locked = WriteConflictException("locked", locked=True, txn_id=first.kwargs["txn_id"], outcome="aborted")
    if chosen:
        with pytest.raises(WriteConflictException):
            flow.throw(locked)
        return
    assert isinstance(flow.throw(locked), Sleep)
    again = flow.send(None)
    assert again.kwargs["txn_id"] != first.kwargs["txn_id"]


def test_a_real_conflict_of_a_transaction_with_a_snapshot_is_told() -> None:
    flow = remote_router().commit([], snapshot=7)
    first_call(flow)
    with pytest.raises(WriteConflictException):
        flow.throw(WriteConflictException("somebody else was first", outcome="aborted"))


def test_a_deadline_is_found_wherever_it_stands_and_moved_to_the_other_clock() -> None:
    options = ReadOptions(min_ts=7, deadline=123.0)
    assert deadline_of(("c", options), {}) == 123.0
    assert deadline_of(("c",), {"options": options}) == 123.0
    assert deadline_of(("c",), {"deadline": 5.0}) == 5.0
    assert deadline_of(("c",), {"deadline": None}) is None

    args, kwargs = rebase(("c", options), {"options": options, "deadline": 5.0, "limit": 3}, 99.0)
    assert args[1] == kwargs["options"] == ReadOptions(min_ts=7, deadline=99.0)
    assert kwargs["deadline"] == 99.0 and kwargs["limit"] == 3
    assert rebase(("c",), {"deadline": None}, 99.0)[1] == {"deadline": None}


def test_without_a_deadline_the_routers_own_timeout_counts() -> None:
    began = time.monotonic()
    call = first_call(remote_router().count("c"))
    assert began + 3 <= call.deadline <= time.monotonic() + 3


def test_clocks_travel_both_ways() -> None:
    router = remote_router()
    seen = timestamp(SystemClock().now_ms(), 77)
    router.state.observe(seen)
    call = first_call(router.count("c"))
    clock, calls = decode(encode(outgoing([call], router.state)))
    assert clock >= seen
    assert calls[0][:3] == ("count", call.args, call.kwargs) and 2.5 < calls[0][3] <= 3

    later = timestamp(SystemClock().now_ms() + 100)
    error = RecordNotFoundError("gone", record_id="a")
    answers = incoming(decode(encode((later, ["found", error]))), router.state)
    assert answers[0] == "found" and isinstance(answers[1], RecordNotFoundError)
    assert router.state.hlc.last == later
    with pytest.raises(ShardUnavailableError):
        unwrap(encode(ShardUnavailableError("no controller")))


async def test_a_router_actor_runs_nothing_but_router_methods() -> None:
    actor = RouterActor(RouterPlan("c"))
    router = Router(initial_map(1), SystemClock(), random.Random(1))
    refused = await actor._one(router, None, "__reduce__", (), {}, 1.0)  # type: ignore[arg-type]
    assert isinstance(refused, InvalidDataException)
