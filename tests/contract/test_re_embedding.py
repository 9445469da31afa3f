"""The recipe of docs/recipes/re_embedding.md, under readers and writers: all-old or all-new, and nothing lost."""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

pytestmark = pytest.mark.needs("transactions")

RECORDS = 60


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "examples" / "re_embedding.py"
    spec = importlib.util.spec_from_file_location("re_embedding_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def marked(dim: int, mark: float) -> Callable[[Any], np.ndarray[Any, np.dtype[np.float32]]]:
    """A model whose vectors say which model made them, in their first place."""

    def model(texts: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.array([[mark, *np.full(dim - 1, len(text))] for text in texts], dtype=np.float32)

    return model


def mark_of(packet: DataPacket) -> float:
    assert packet.vector is not None
    return float(packet.vector.to_numpy()[0])


class Crowd:
    """Threads that read and write by an alias until they are stopped."""

    def __init__(
        self, client: VecraftClient, recipe: ModuleType, alias: str, models: dict[str, Any], texts: dict[str, str]
    ) -> None:
        self.client, self.recipe, self.alias, self.models = client, recipe, alias, models
        self.expected = dict(texts)
        self.writes = 0
        self.seen: set[float] = set()
        self.errors: list[BaseException] = []
        self.wrong: list[str] = []
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._write, self._read)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                work()
        except BaseException as error:
            self.errors.append(error)

    def _write(self) -> None:
        record_id = f"r{self._random.randrange(2 * RECORDS)}"
        if self._random.random() < 0.25:
            self.client.delete(self.alias, record_id)
            self.expected.pop(record_id, None)
        else:
            text = f"{record_id} again {self.writes}"
            self.recipe.write(self.client, self.models, self.alias, record_id, text)
            self.expected[record_id] = text
        self.writes += 1
        self._stop.wait(0.05)  # else no attempt would find a moment without a write

    def _read(self) -> None:
        with self.client.snapshot() as moment:
            name = moment.list_aliases()[self.alias]
            query = self.models[name](["x" * 9])[0]
            found = {
                "scan": [mark_of(packet) for packet in moment.scan(self.alias)],
                "search": [
                    hit.vector[0]
                    for hit in moment.search(self.alias, QueryPacket(query, k=500, include=("vector",)))
                    if hit.vector is not None
                ],
            }
            count = moment.count(self.alias)
        for what, marks in found.items():
            if set(map(float, marks)) != {float(query[0])} or len(marks) != count:
                self.wrong.append(f"{what} at {name}: {sorted(set(marks))}, {len(marks)} of {count}")
        self.seen.add(float(query[0]))
        # without a snapshot, one answer is of one moment all the same
        marks = {mark_of(packet) for packet in self.client.scan(self.alias)}
        if len(marks) != 1:
            self.wrong.append(f"a scan by the alias: {marks}")


def test_readers_see_all_old_or_all_new_and_no_write_is_lost(
    client: VecraftClient, recipe: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, alias = f"{name}.v1", f"{name}.v2", f"{name}-articles"
    models = {old: marked(3, 1.0), new: marked(5, 2.0)}
    client.create_collection(CollectionSchema(name=old, dim=3))
    texts = {f"r{number}": f"text {number}" for number in range(RECORDS)}
    client.upsert(old, ids=list(texts), vectors=models[old](texts.values()), documents=list(texts.values()))
    client.set_alias(alias, old)
    monkeypatch.setattr(recipe, "BATCH", 5)
    crowd = Crowd(client, recipe, alias, models, texts)

    def slow(documents: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """As real models are: there is time for others to write meanwhile."""
        threading.Event().wait(0.02)
        return models[new](documents)

    with crowd:
        switched = recipe.re_embed(client, alias, CollectionSchema(name=new, dim=5), slow)
        seen_by_then, written_by_then = set(crowd.seen), crowd.writes
        while not crowd.errors and (2.0 not in crowd.seen or crowd.writes < written_by_then + 2):
            threading.Event().wait(0.02)
    assert crowd.errors == []
    assert crowd.wrong == []
    assert 1.0 in seen_by_then
    assert 2.0 in crowd.seen
    assert written_by_then >= 2
    assert client.list_aliases()[alias] == new
    assert {packet.record_id: packet.document for packet in client.scan(alias)} == crowd.expected
    before = {packet.record_id: packet.document for packet in client.scan(old, as_of=switched - 1)}
    after = {packet.record_id: packet.document for packet in client.scan(alias, as_of=switched)}
    assert before == after
    assert client.count(old) == len(before)  # nothing went there behind the switch
