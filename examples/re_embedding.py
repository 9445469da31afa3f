"""Move a collection to the vectors of another model while it is read and written: ``python examples/re_embedding.py``.

Readers and writers name the collection by an alias, and use the model that belongs to what the alias means at their
moment. The move fills a new collection beside the old one, catches up, and then, in one transaction, catches up for the
last time and switches the alias. Whoever reads sees the old collection as a whole or the new one as a whole; a write
that comes between the last look and the switch makes the transaction fail, and it looks again. See
docs/recipes/re_embedding.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.errors import WriteConflictException
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.client.views import Snapshot, Transaction

Model = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""Texts to vectors (n, dim) float32."""

BATCH = 200


def re_embed(client: VecraftClient, alias: str, schema: CollectionSchema, model: Model, attempts: int = 100) -> int:
    """Move what ``alias`` means into a new collection with the vectors of ``model``; return when it was switched.

    Should it be cut short, call it again: it starts over, and nobody has seen anything of it.

    Args:
        client: The database.
        alias: By which everybody reads and writes.
        schema: Of the new collection.
        model: Makes vectors of documents.
        attempts: How often to catch up before giving up on writers that leave no moment between them.

    Raises:
        WriteConflictException: Somebody wrote within the last transaction each time; nothing was switched.
    """
    client.create_collection(schema, if_not_exists=True)
    if client.count(schema.name):
        client.delete_many(schema.name, ids=[packet.record_id for packet in client.scan(schema.name, include=())])
    done: dict[str, int | None] = {}  # record id → commit timestamp of the version that was moved
    while True:
        with client.snapshot() as moment:
            done = catch_up(moment, client, alias, schema.name, model, done)
        try:
            with client.transaction() as tx:
                catch_up(tx, tx, alias, schema.name, model, done)
                tx.set_alias(alias, schema.name)
                return tx.commit().commit_ts
        except WriteConflictException:
            attempts -= 1
            if not attempts:
                raise


def catch_up(
    reader: Snapshot | Transaction,
    writer: VecraftClient | Transaction,
    alias: str,
    target: str,
    model: Model,
    done: Mapping[str, int | None],
) -> dict[str, int | None]:
    """Bring ``target`` to what ``alias`` shows at the reader's moment; return the versions that were moved by then."""
    now = {packet.record_id: packet.commit_ts for packet in reader.scan(alias, include=())}
    changed = [record_id for record_id, commit_ts in now.items() if done.get(record_id) != commit_ts]
    for start in range(0, len(changed), BATCH):
        packets = [packet for packet in reader.get_many(alias, changed[start : start + BATCH]) if packet is not None]
        writer.upsert(
            target,
            ids=[packet.record_id for packet in packets],
            vectors=model([str(packet.document) for packet in packets]),
            metadatas=[packet.metadata for packet in packets],
            documents=[packet.document for packet in packets],
        )
    gone = [record_id for record_id in done if record_id not in now]
    if gone:
        writer.delete_many(target, gone)
    return now


# ----------------------------------------------------------------------------- how everybody else reads and writes


def write(client: VecraftClient, models: Mapping[str, Model], alias: str, record_id: str, text: str) -> None:
    """Write a record with the model of the collection that the alias means when it is committed."""

    def body(tx: Transaction) -> None:
        model = models[tx.list_aliases()[alias]]
        tx.upsert(alias, ids=[record_id], vectors=model([text]), documents=[text])

    client.run_transaction(body)


def search(client: VecraftClient, models: Mapping[str, Model], alias: str, text: str, k: int = 3) -> list[str]:
    """Search with the model of the collection that the alias means, both at one moment."""
    with client.snapshot() as moment:
        model = models[moment.list_aliases()[alias]]
        return [hit.record_id for hit in moment.search(alias, QueryPacket(model([text])[0], k=k))]


# ------------------------------------------------------------------------------------------------- try it out


def letters(dim: int) -> Model:
    """Return a model for this example: it counts letters. A real one is a neural network."""

    def model(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for letter in text:
                vectors[row, ord(letter) % dim] += 1
        return vectors

    return model


def main() -> None:
    """Move a collection while a thread goes on writing to it."""
    models = {"articles-v1": letters(8), "articles-v2": letters(16)}
    with VecraftClient(root=":memory:", shards=2) as client:
        client.create_collection(CollectionSchema(name="articles-v1", dim=8))
        client.set_alias("articles", "articles-v1")
        for number in range(500):
            write(client, models, "articles", f"a{number}", f"article number {number}")
        stop = threading.Event()
        written = 500

        def keep_writing() -> None:
            nonlocal written
            while not stop.wait(0.05):
                write(client, models, "articles", f"a{written}", f"article number {written}")
                written += 1

        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            switched = re_embed(client, "articles", CollectionSchema(name="articles-v2", dim=16), models["articles-v2"])
        finally:
            stop.set()
            writer.join()
        if client.count("articles") != written:
            raise SystemExit("a write was lost")
        print(f"moved {client.count('articles-v1', as_of=switched)} articles at {switched}, {written} now")
        print("nearest to 'article number 7':", search(client, models, "articles", "article number 7"))
        client.drop_collection("articles-v1")


if __name__ == "__main__":
    main()
