"""What a router tells of ids that were used before: for another content, or so long ago that nobody remembers."""

from __future__ import annotations

import pytest
from router_workbench import Workbench

from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import (
    AbortTransaction,
    BatchReply,
    CommitOne,
    Committed,
    Finish,
    Get,
    Prepare,
    Refused,
    Request,
    Resolve,
    Response,
    Undecided,
)


class Stubborn(Workbench):
    """Shards that answer some kinds of requests always the same."""

    def __init__(self, answers: dict[type, Response]) -> None:
        super().__init__(shards=2)
        self.create()
        self.answers = answers

    def execute(self, shard: int, request: Request) -> BatchReply:
        answer = getattr(self, "answers", {}).get(type(request))
        return super().execute(shard, request) if answer is None else BatchReply([answer])

    def commit(self, shards: int) -> VecraftError:
        ids = [record_id for shard in range(shards) for record_id in self.ids_on(shard)]
        self.asked.clear()
        with pytest.raises(VecraftError) as caught:
            self.run(self.router.commit([self.put(*ids)], txn_id="chosen"))
        return caught.value


def test_a_commit_of_another_content_is_not_taken_for_this_one() -> None:
    """The votes got lost, and the primary says that it committed: but something else, under the same id."""
    lost = Refused(ShardUnavailableError("gone"))
    bench = Stubborn({Prepare: lost, AbortTransaction: Committed(5, 1, content_hash=b"other")})
    error = bench.commit(shards=2)
    assert isinstance(error, InvalidDataException)
    assert "used before with other content" in error.message
    assert error.details["outcome"] == "aborted"


def test_releasing_an_attempt_names_its_content() -> None:
    """So that it does not release another content's locks under the same id."""
    bench = Stubborn({Prepare: Refused(InvalidDataException("used before"))})
    bench.commit(shards=2)
    (finish,) = [request for _, request in bench.asked if isinstance(request, Finish)]
    (prepare, _) = [request for _, request in bench.asked if isinstance(request, Prepare)][:2]
    assert finish.content_hash == prepare.txn.content_hash != b""


@pytest.mark.parametrize("shards", [1, 2])
def test_nothing_is_claimed_about_an_id_that_may_have_been_forgotten(shards: int) -> None:
    """It may be a repetition of what was committed: neither is an abort told, nor written down."""
    forgotten = Refused(InvalidDataException("too old", forgotten=True))
    bench = Stubborn({Prepare: forgotten, CommitOne: forgotten})
    error = bench.commit(shards)
    assert isinstance(error, InvalidDataException)
    assert error.details["outcome"] == "unknown"
    assert not any(isinstance(request, AbortTransaction) for _, request in bench.asked)


def test_nor_is_it_when_somebody_asks_what_became_of_it() -> None:
    """One shard may remember an abort while another, which may have committed it, has forgotten."""
    bench = Stubborn({Resolve: Refused(InvalidDataException("too old", forgotten=True))})
    with pytest.raises(InvalidDataException) as caught:
        bench.run(bench.router.resolve("chosen"))
    assert caught.value.details["outcome"] == "unknown"
    assert all(not request.held for _, request in bench.asked if isinstance(request, Resolve))


def test_a_reader_does_not_claim_that_somebody_holds_what_it_asks_about() -> None:
    """What it met may have been committed, acknowledged and forgotten since: it must not be aborted then."""
    bench = Stubborn({Get: Undecided([("old", 1)]), Resolve: Refused(InvalidDataException("too old", forgotten=True))})
    with pytest.raises(TimeoutException):
        bench.run(bench.router.get("things", bench.ids_on(0)))
    questions = [request for _, request in bench.asked if isinstance(request, Resolve)]
    assert questions and not any(question.held for question in questions)
