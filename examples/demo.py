"""The tour, by ``make demo``: a real database on a Ray cluster of this machine, on real embeddings.

Each step shows one promise, and checks it: a step that finds its promise broken ends the demo with an error. Nothing is
left running or lying about but the pictures in ``demo-output/``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.demo_cluster import SHARDS, Stage, running_stage
from examples.wordnet import WordNet, load
from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import VecraftError, WriteConflictException
from vecraft_data_model.placement import initial_map

COLLECTION = "glosses"
BATCH = 250
OUTPUT = Path("demo-output")

console = Console(highlight=False)


class BrokenPromise(Exception):
    """The database did not do what this step shows."""


def check(holds: bool, promise: str) -> None:
    """Go on only if a promise was kept."""
    if not holds:
        raise BrokenPromise(promise)


def step(title: str) -> None:
    """Begin a step."""
    console.print()
    console.rule(f"[bold cyan]{title}", align="left", style="cyan")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Show that something is under way, then how long it took."""
    began = time.monotonic()
    with console.status(what):
        yield
    console.print(f"[green]✓[/green] {what} [dim]({time.monotonic() - began:.1f} s)[/dim]")


# -------------------------------------------------------------------------------------------------------------- steps


def load_glosses(stage: Stage, data: WordNet) -> None:
    """Write all glosses, each batch one atomic, durable transaction over both shards."""
    stage.client.create_collection(CollectionSchema(name=COLLECTION, dim=data.vectors.shape[1], metric="cosine"))
    bar = Progress(
        TextColumn("loading"), BarColumn(), MofNCompleteColumn(), TextColumn("records"), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip
    began = time.monotonic()
    with bar:
        task = bar.add_task("load", total=len(data.ids))
        for start in range(0, len(data.ids), BATCH):
            part = slice(start, start + BATCH)
            result = stage.client.upsert(
                COLLECTION,
                ids=data.ids[part],
                vectors=data.vectors[part],
                metadatas=data.metadatas[part],
                documents=data.glosses[part],
            )
            bar.advance(task, result.count)
    rate = len(data.ids) / (time.monotonic() - began)
    check(stage.client.count(COLLECTION) == len(data.ids), "what upsert returned can be counted at once")
    console.print(
        f"{len(data.ids):,} glosses of {data.vectors.shape[1]} dimensions, {rate:,.0f} acknowledged per second"
    )


def show_hits(title: str, results: list) -> None:  # type: ignore[type-arg]
    """Print what a search found."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("distance", justify="right", style="cyan")
    table.add_column("word", style="green", no_wrap=True)
    table.add_column("kind", style="dim", no_wrap=True)
    table.add_column("gloss")
    for result in results:
        metadata = result.metadata or {}
        row = (metadata.get("lemma"), metadata.get("lexname"), result.document)
        table.add_row(f"{result.distance:.3f}", *(escape(str(value)) for value in row))
    console.print(table)
    console.print()


def search(stage: Stage, data: WordNet) -> None:
    """Search with and without filters, here and through the gateway."""
    for number in (7, 17):
        query = QueryPacket(query_vector=data.queries[number], k=4)
        show_hits(f"“{data.query_texts[number]}”", stage.client.search(COLLECTION, query))

    text, vector = data.query_texts[34], data.queries[34]
    filters = (
        ("only verbs", {"where": {"pos": "v"}}),
        ("short glosses of animals and plants",
         {"where": {"lexname": ["noun.animal", "noun.plant"], "gloss_len": {"$lt": 60}}}),
        ("glosses that say “iron” or “metal”",
         {"where_document": {"$or": [{"$matches": "iron"}, {"$matches": "metal"}]}}),
    )  # fmt: skip
    for title, arguments in filters:
        query = QueryPacket(query_vector=vector, k=3, **arguments)
        results = stage.client.search(COLLECTION, query)
        show_hits(f"“{text}”, {title}", results)
        over_rest = stage.rest.search(COLLECTION, query)
        check(
            [hit.record_id for hit in over_rest] == [hit.record_id for hit in results],
            "the gateway gives the same answer",
        )
    console.print(f"[green]✓[/green] the REST gateway at {stage.url} answers the same")


def shard_of(record_id: str) -> int:
    """Return where a record lives in this demo's cluster."""
    return int(initial_map(SHARDS).shard_of(record_id))


def transactions(stage: Stage, data: WordNet) -> None:
    """An atomic change over both shards; one that fails; two that collide."""
    client = stage.client
    by_shard = {shard_of(record_id): record_id for record_id in data.ids}
    check(len(by_shard) == SHARDS, "records are spread over the shards")
    first, second = by_shard[0], by_shard[1]
    console.print(f"record [green]{first}[/green] lives on shard 0, record [green]{second}[/green] on shard 1")

    def marked(record_id: str, mark: str) -> DataPacket:
        packet = client.get(COLLECTION, record_id)
        check(packet.vector is not None, "a record comes with its vector")
        return DataPacket(record_id, packet.vector, {**(packet.metadata or {}), "mark": mark}, packet.document)  # type: ignore[arg-type]

    with client.transaction() as transaction:
        transaction.upsert(COLLECTION, [marked(first, "together"), marked(second, "together")])
        check(client.count(COLLECTION, where={"mark": "together"}) == 0, "nobody sees it before the commit")
        check(transaction.count(COLLECTION, where={"mark": "together"}) == 2, "but the transaction itself does")
    check(client.count(COLLECTION, where={"mark": "together"}) == 2, "after it, both")
    console.print("[green]✓[/green] both changed in one commit over both shards: none was visible before, both are now")

    try:
        with client.transaction() as transaction:
            transaction.upsert(COLLECTION, [marked(first, "half"), marked(second, "half")])
            raise ValueError("something goes wrong in the middle")
    except ValueError:
        check(client.count(COLLECTION, where={"mark": "half"}) == 0, "an exception leaves nothing behind")
    console.print("[green]✓[/green] an exception inside of a transaction left nothing behind")

    slow = client.transaction()
    with client.transaction() as quick:
        slow.__enter__()
        slow.insert(COLLECTION, marked(first, "slow"))
        slow.get(COLLECTION, first)  # chooses its snapshot, before the other one commits
        quick.insert(COLLECTION, marked(first, "quick"))
    try:
        slow.__exit__(None, None, None)
        raise BrokenPromise("the second committer must be refused")
    except WriteConflictException as conflict:
        console.print(
            "[green]✓[/green] two changed the same record: the second was refused\n"
            f"  [dim]{escape(str(conflict))}[/dim]"
        )
    client.run_transaction(lambda again: again.insert(COLLECTION, marked(first, "retried")))
    check((client.get(COLLECTION, first).metadata or {})["mark"] == "retried", "a retry on a new snapshot succeeds")
    console.print("[green]✓[/green] run_transaction tried again on a new snapshot, and it was accepted")


def snapshots(stage: Stage, data: WordNet) -> None:
    """A view that does not move while the world does."""
    client, where = stage.client, {"lexname": "noun.animal"}
    with client.snapshot() as view:
        before = view.count(COLLECTION, where=where)
        gone = client.delete_many(COLLECTION, where=where)
        check(client.count(COLLECTION, where=where) == 0, "the animals are gone")
        check(view.count(COLLECTION, where=where) == before, "the snapshot still has them")
        found = view.search(COLLECTION, QueryPacket(query_vector=data.queries[0], k=3, where=where))
        check(len(found) == 3, "and finds them")
        console.print(
            f"[green]✓[/green] {gone.count} animals were deleted; the snapshot taken before still counts {before} "
            f"and finds “{escape(str((found[0].metadata or {})['lemma']))}”"
        )
        client.upsert(COLLECTION, list(view.scan(COLLECTION, where=where)))
    check(client.count(COLLECTION) == len(data.ids), "everything is back")
    console.print("[green]✓[/green] and it served to put them back")


class Writer(threading.Thread):
    """Inserts records one after the other until it is stopped; keeps what was acknowledged."""

    def __init__(self, stage: Stage, data: WordNet) -> None:
        super().__init__(daemon=True)
        self._stage, self._data = stage, data
        self._over = threading.Event()
        self.acknowledged: list[str] = []
        self.longest = 0.0
        self.fault: VecraftError | None = None

    def run(self) -> None:
        """Insert; the client waits and retries by itself while a shard is away."""
        number = 0
        try:
            while not self._over.is_set():
                record_id = f"written-{number:06}"
                began = time.monotonic()
                vector = self._data.vectors[number % len(self._data.vectors)]
                self._stage.client.insert(COLLECTION, DataPacket(record_id, vector, {"number": number}))
                self.longest = max(self.longest, time.monotonic() - began)
                self.acknowledged.append(record_id)
                number += 1
        except VecraftError as error:
            self.fault = error

    def stop(self) -> None:
        """Stop after the insert that is under way."""
        self._over.set()
        self.join()


def survive(stage: Stage, data: WordNet) -> None:
    """Kill a shard's process while records are being written; nothing that was acknowledged may be missing."""
    client = stage.client
    victim = _shard_pid(stage)
    writer = Writer(stage, data)
    writer.start()
    time.sleep(1.0)
    before = len(writer.acknowledged)
    console.print(
        f"a writer inserts record after record ({before} so far); [bold red]kill -9 {victim}[/bold red], shard 0"
    )
    console.print("[dim](Ray tells of the death in its own words, too)[/dim]")
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    with console.status("waiting for shard 0"):
        while len(writer.acknowledged) < before + 50 and writer.is_alive():
            time.sleep(0.05)
            check(time.monotonic() - began < 60, "a killed shard comes back")
    writer.stop()
    if writer.fault is not None:
        raise writer.fault
    # The supervisor looks around once a second: it may not have seen the new process yet, though that answered already.
    while _shard_pid(stage) == victim and time.monotonic() - began < 60:
        time.sleep(0.1)
    check(_shard_pid(stage) != victim, "another process serves shard 0 now")
    console.print(
        f"[green]✓[/green] shard 0 is back as process {_shard_pid(stage)}; the writer saw no error, "
        f"its longest insert took {writer.longest:.1f} s"
    )
    written = client.get_many(COLLECTION, writer.acknowledged)
    check(all(packet is not None for packet in written), "every acknowledged record is there")
    originals = {packet.record_id for packet in client.scan(COLLECTION, where={"lemma": {"$exists": True}})}
    check(originals == set(data.ids), "and so is everything from before")
    console.print(
        f"[green]✓[/green] nothing lost: {len(written)} inserts acknowledged before and after the kill and "
        f"{len(originals):,} glosses are there, every checksum verified"
    )
    client.delete_many(COLLECTION, ids=writer.acknowledged)


def _shard_pid(stage: Stage) -> int:
    """Return the process of shard 0, asked from the controller until it knows."""
    deadline = time.monotonic() + 30
    while True:
        shard = stage.client.cluster_info()["shards"][0]
        if shard.get("pid") and shard.get("state") == "serving":
            return int(shard["pid"])
        check(time.monotonic() < deadline, "the controller knows its shards")
        time.sleep(0.2)


def recall(stage: Stage, data: WordNet) -> None:
    """Measure recall@10 against exact answers computed here, by numpy."""
    with timed("indexing everything that is still scanned"):
        stage.client.checkpoint(index=True, timeout=120)
    distances = 1.0 - data.queries @ data.vectors.T
    tenth = np.partition(distances, 9, axis=1)[:, 9]
    for title, exact in (("HNSW", False), ("exact=True", True)):
        began = time.monotonic()
        answers = stage.client.search_many(COLLECTION, data.queries, k=10, exact=exact)
        seconds = time.monotonic() - began
        # Equal glosses have equal vectors: right is whatever is as near as the true tenth.
        right = sum(hit.distance <= tenth[i] + 1e-4 for i, hits in enumerate(answers) for hit in hits)
        share = right / (10 * len(data.queries))
        console.print(
            f"{title:>11}: recall@10 = [bold]{share:.3f}[/bold] over {len(data.queries)} queries in {seconds:.2f} s"
        )
        check(share >= (0.999 if exact else 0.9), "the answers are the nearest")
    info = stage.client.describe_collection(COLLECTION)
    console.print(
        f"[dim]{info.indexed_rows:,} rows in the graphs, {info.tail_rows} scanned, search depth {info.ef}[/dim]"
    )


def pictures(stage: Stage) -> None:
    """Draw the glosses, and scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    OUTPUT.mkdir(exist_ok=True)
    digits = load_digits()
    stage.client.create_collection(CollectionSchema(name="digits", dim=64))
    stage.client.upsert(
        "digits",
        ids=[f"digit-{i:04}" for i in range(len(digits.data))],
        vectors=digits.data.astype(np.float32),
        metadatas=[{"digit": int(target)} for target in digits.target],
    )
    for collection, color_by in ((COLLECTION, "lexname"), ("digits", "digit")):
        with timed(f"t-SNE of {collection}, coloured by {color_by}"):
            path = stage.client.generate_tsne_plot(
                collection, color_by=color_by, outfile=OUTPUT / f"{collection}.png", timeout=60
            )
        console.print(f"  {path}")


def main() -> int:
    """Run the tour; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description="A tour of VecraftDB on this machine.")
    parser.add_argument("--without-pictures", action="store_true", help="leave the t-SNE plots out")
    arguments = parser.parse_args()
    data = load()
    began = time.monotonic()
    try:
        step(f"Starting Ray, {SHARDS} shards, a router and a REST gateway on this machine")
        status = console.status("starting (10 to 30 seconds)")
        status.start()
        with running_stage() as stage:
            status.stop()
            console.print(f"[green]✓[/green] all of it answers [dim]({time.monotonic() - began:.1f} s)[/dim]")
            step("Loading WordNet glosses")
            load_glosses(stage, data)
            step("Searching, with and without filters")
            search(stage, data)
            step("Transactions")
            transactions(stage, data)
            step("A snapshot that does not move")
            snapshots(stage, data)
            step("Killing a shard")
            survive(stage, data)
            step("Measuring recall")
            recall(stage, data)
            if not arguments.without_pictures:
                step("Pictures")
                pictures(stage)
            step("Stopping")
        console.print(
            "[green]✓[/green] everything that was started is stopped "
            f"[dim]({time.monotonic() - began:.0f} s in all)[/dim]"
        )
        return 0
    except KeyboardInterrupt:
        console.print("\n[yellow]interrupted; everything that was started is stopped[/yellow]")
        return 130
    except BrokenPromise as broken:
        console.print(f"\n[bold red]✗ not so: {broken}[/bold red]")
        return 1
    except VecraftError as error:
        console.print(f"\n[bold red]✗ {error.code}: {escape(error.message)}[/bold red]")
        return 1
    finally:
        status.stop()


if __name__ == "__main__":
    sys.exit(main())
