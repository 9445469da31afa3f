"""The clients of a black-box run: list appends, bank transfers, searches inside transactions; any kind of client.

Each worker is one client that does one thing after another, on its own thread. What it is told it writes down; what it
is not told it asks again with the same transaction, as the documentation says.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from tests.blackbox.content import (
    BANK,
    COLLECTIONS,
    DIM,
    GROUPS,
    ISOLATION,
    LISTS,
    OPENING_BALANCE,
    STRICT,
    State,
    metadata_of,
    state_in,
    state_of,
    vector_of,
)
from tests.blackbox.events import Events, SearchSeen, Txn
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.errors import (
    OverloadedError,
    ReadWriteConflictException,
    ShardUnavailableError,
    TimeoutException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.client.views import Transaction

SLOTS = 20
"""Lists per collection that are appended to at a time."""

LIST_MAX = 60
"""A list that has grown so long is left alone, and its slot goes on with a new one: every append copies it."""

ACCOUNTS = [f"a{number:02d}" for number in range(16)]
PATIENCE_S = 90.0
AWAY = (ShardUnavailableError, TimeoutException, OverloadedError)
CONFLICT = (WriteConflictException, ReadWriteConflictException)
KINDS = {"append": 34, "skew": 14, "transfer": 22, "look": 18, "audit": 6, "fresh": 6}
"""What clients do, and how often."""


class Workload:
    """What the workers share.

    Args:
        clients: The workers take turns to be given one; each may serve several.
        workers: How many.
        target: Committed transactions after which they stop.
        seed: Of what they do; what is answered when is chance.
        limit_s: Seconds after which they stop at any rate.
    """

    def __init__(
        self, clients: Sequence[VecraftClient], workers: int, target: int, seed: int, limit_s: float = 1e9
    ) -> None:
        self.events = Events()
        self.seed = seed
        self.unresolved: list[tuple[Transaction, Txn]] = []
        self._target = target
        self._end_at = time.monotonic() + limit_s
        self._lock = threading.Lock()
        self._serial = 0
        self._committed = 0
        self._generations = {(name, slot): 0 for name in (LISTS, STRICT) for slot in range(SLOTS)}
        self._workers = [Worker(self, number, clients[number % len(clients)]) for number in range(workers)]

    def prepare(self, client: VecraftClient) -> None:
        """Make the collections and open the accounts."""
        for name in COLLECTIONS:
            client.create_collection(CollectionSchema(name=name, dim=DIM, M=4, ef_construction=10))
        txn = self.begin(-1, "open", BANK, 0)
        txn.writes = {account: State(txn.serial, OPENING_BALANCE) for account in ACCOUNTS}
        result = client.upsert(BANK, **columns(txn.writes))
        self.end(txn, "committed", result.commit_ts)

    def run(self) -> None:
        """Let the workers work until enough is committed; returns when all have ended."""
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.join()

    def settle(self) -> None:
        """Ask again about every transaction whose outcome nobody was told, now that the weather is fine."""
        for tx, txn in self.unresolved:
            commit(tx, txn, self)
        self.unresolved = [(tx, txn) for tx, txn in self.unresolved if not txn.told]

    @property
    def over(self) -> bool:
        """Whether enough was done."""
        return self._committed >= self._target or time.monotonic() > self._end_at

    @property
    def committed(self) -> int:
        """How many transactions were committed so far."""
        return self._committed

    def begin(self, client: int, kind: str, collection: str, least: int) -> Txn:
        """A new transaction, written down."""
        with self._lock:
            self._serial += 1
            txn = Txn(self._serial, client, kind, collection, ISOLATION[collection], time.monotonic(), least)
            self.events.transactions.append(txn)
            return txn

    def end(self, txn: Txn, told: str, commit_ts: int = 0) -> None:
        """A transaction's outcome is known."""
        with self._lock:
            txn.told, txn.commit_ts, txn.answered = told, commit_ts, time.monotonic()
            self._committed += told == "committed"

    def key(self, collection: str, slot: int) -> str:
        """The list that a slot appends to now."""
        return f"k{slot:02d}.{self._generations[collection, slot]:03d}"

    def grown(self, collection: str, key: str) -> None:
        """A list is long enough."""
        slot, generation = int(key[1:3]), int(key[4:])
        with self._lock:
            self._generations[collection, slot] = max(self._generations[collection, slot], generation + 1)


class Worker(threading.Thread):
    """One client."""

    def __init__(self, work: Workload, number: int, client: VecraftClient) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._work = work
        self._number = number
        self._client = client
        self._random = random.Random(f"{work.seed} {number}")
        self._least = 0

    def run(self) -> None:
        """Do one thing after another until enough was done."""
        while not self._work.over:
            try:
                self._step()
            except Exception:
                self._work.events.unexpected.append(traceback.format_exc())
                return

    def _step(self) -> None:
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        collection = BANK if kind in ("transfer", "audit") else self._random.choice((LISTS, STRICT))
        txn = self._work.begin(self._number, kind, collection, self._least)
        body: Callable[[Transaction, Txn], None] = getattr(self, f"_{kind}")
        try:
            if kind == "fresh":
                self._fresh(txn)
                return
            chosen = new_txn_id() if self._random.random() < 0.5 else None
            tx = self._client.transaction(txn.isolation, txn_id=chosen)
            tx.__enter__()
            txn.snapshot = tx.snapshot or 0
            body(tx, txn)
        except AWAY:
            self._work.events.abandoned += 1
            self._work.end(txn, "aborted")
            return
        commit(tx, txn, self._work)
        if not txn.told:
            self._work.unresolved.append((tx, txn))
        self._least = max(self._least, txn.snapshot, txn.commit_ts)

    # ------------------------------------------------------------------------------------------------- bodies

    def _append(self, tx: Transaction, txn: Txn) -> None:
        keys = self._keys(txn.collection, self._random.randint(1, 4))
        self._read(tx, txn, keys)
        if self._random.random() < 0.2:
            self._search(tx, txn)
        written = self._random.sample(keys, self._random.randint(1, len(keys)))
        self._append_to(tx, txn, written)
        if self._random.random() < 0.25:
            self._search(tx, txn)

    def _skew(self, tx: Transaction, txn: Txn) -> None:
        """Read two lists of few, append to one: two of these at a time make a write skew."""
        slots = self._random.sample(range(3), 2)
        keys = [self._work.key(txn.collection, slot) for slot in slots]
        self._read(tx, txn, keys)
        self._append_to(tx, txn, keys[:1])

    def _transfer(self, tx: Transaction, txn: Txn) -> None:
        pair = self._random.sample(ACCOUNTS, 2)
        self._read(tx, txn, pair)
        amount = self._random.randint(1, 10)
        for account, change in zip(pair, (-amount, amount), strict=True):
            before = txn.reads[account]
            if before is None or not isinstance(before.value, int):
                raise AssertionError(f"account {account} is gone: {before}")
            txn.writes[account] = State(txn.serial, before.value + change)
        self._write(tx, txn)
        if self._random.random() < 0.25:
            self._search(tx, txn)

    def _look(self, tx: Transaction, txn: Txn) -> None:
        self._read(tx, txn, self._keys(txn.collection, self._random.randint(1, 4)))
        if self._random.random() < 0.5:
            self._search(tx, txn)

    def _audit(self, tx: Transaction, txn: Txn) -> None:
        self._read(tx, txn, ACCOUNTS)
        self._search(tx, txn)
        group = self._random.randrange(GROUPS)
        txn.counts.append((group, dict(txn.writes), tx.count(BANK, where={"g": group})))

    def _fresh(self, txn: Txn) -> None:
        txn.strong = True
        keys = self._keys(txn.collection, self._random.randint(1, 3))
        packets = self._client.get_many(txn.collection, keys, consistency="strong")
        txn.reads = {key: state_of(packet) for key, packet in zip(keys, packets, strict=True)}
        self._work.end(txn, "read")

    # -------------------------------------------------------------------------------------------------- parts

    def _keys(self, collection: str, count: int) -> list[str]:
        return [self._work.key(collection, slot) for slot in self._random.sample(range(SLOTS), count)]

    def _read(self, tx: Transaction, txn: Txn, keys: Sequence[str]) -> None:
        packets = tx.get_many(txn.collection, keys)
        txn.reads = {key: state_of(packet) for key, packet in zip(keys, packets, strict=True)}

    def _append_to(self, tx: Transaction, txn: Txn, keys: Sequence[str]) -> None:
        for key in keys:
            before = txn.reads[key]
            elements = before.value if before is not None and isinstance(before.value, tuple) else ()
            txn.writes[key] = State(txn.serial, (*elements, txn.serial))
            if len(elements) + 1 >= LIST_MAX:
                self._work.grown(txn.collection, key)
        self._write(tx, txn)

    def _write(self, tx: Transaction, txn: Txn) -> None:
        tx.upsert(txn.collection, **columns(txn.writes))

    def _search(self, tx: Transaction, txn: Txn) -> None:
        query = [float(self._random.randrange(8)) for _ in range(DIM)]
        k, group = self._random.randint(1, 4), self._random.choice((None, self._random.randrange(GROUPS)))
        where = None if group is None else {"g": group}
        exact = self._random.random() < 0.8
        packet = QueryPacket(np.array(query, np.float32), k=k, where=where, exact=exact)
        found = tx.search(txn.collection, packet)
        hits = [(hit.record_id, float(hit.distance), state_in(hit.metadata).tag) for hit in found]
        txn.searches.append(SearchSeen(query, k, group, exact, dict(txn.writes), hits))


def columns(writes: dict[str, State]) -> dict[str, list[object]]:
    """Records as ``upsert`` takes them."""
    return {
        "ids": list(writes),
        "vectors": [vector_of(key, state.tag) for key, state in writes.items()],
        "metadatas": [metadata_of(state) for state in writes.values()],
    }


def commit(tx: Transaction, txn: Txn, work: Workload) -> None:
    """Commit, and ask again with the same transaction as long as the outcome is unknown and patience lasts."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        txn.tries += 1
        try:
            result = tx.commit()
        except VecraftError as error:
            outcome = error.details.get("outcome")
            if outcome == "unknown" or (isinstance(error, AWAY) and outcome is None):
                if time.monotonic() > give_up_at:
                    return
                time.sleep(0.02)
                continue
            if not isinstance(error, (*CONFLICT, *AWAY)):
                raise
            work.end(txn, "aborted")
            return
        work.end(txn, "committed", result.commit_ts)
        return
