"""``vecraft verify``: reads everything a data directory holds, and compares what is stored twice.

In order, for a directory that no process has open:

1. Every shard's files: whether those are there that protect others, the pages of ``shard.sqlite`` against their
   checksums and SQLite's own check, the saved graphs against theirs.
2. The directory is opened as a start would open it: that checks the root file, the log's chain of checksums, file
   headers and posting segments, and replays the log.
3. Every record, at one snapshot: its checksum over id, metadata, document and vector. Then those that were replaced or
   deleted, as far as they are kept.
4. The indexes against the records: each id by lookup; each metadata field by its values (up to ``VALUES_PER_FIELD``),
   by existence and by order; documents by words and substrings of theirs; the graph by its recall against exact search.

A finding is a sentence that names file, collection or record. What is damaged is reported and left as it is, with one
exception that every start makes: a damaged graph is built again from the vectors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecraft_cluster.root import ROOT_FILE, RootState, read_root, shard_path
from vecraft_data_model.convert import packets_of_rows
from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    StorageFailureException,
    VecraftError,
)
from vecraft_data_model.filters import matches, matches_document, parse_where, parse_where_document, words
from vecraft_data_model.packets import DataPacket
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.schema import CollectionSchema
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.config import Settings
from vecraft_db.embedded import EmbeddedEngine
from vecraft_router.options import ReadOptions
from vecraft_shard.audit import audit_guards
from vecraft_shard.disk import OsDisk, lock_directory
from vecraft_shard.indexes.hnsw import verify_saved
from vecraft_shard.locations import Locations

PAGE_ROWS = 1000
VALUES_PER_FIELD = 200
TEXTS_PER_COLLECTION = 50
RECALL_QUERIES = 100
RECALL_SLACK = 0.1
"""How far below its target the recall of a sample may lie before it is a finding."""

Note = Callable[[str], None]


@dataclass
class CollectionReport:
    """What was checked of one collection."""

    name: str
    records: int = 0
    filters: int = 0
    recall: float | None = None


@dataclass
class VerifyReport:
    """What was checked, and what was found."""

    root: str
    shards: int = 0
    collections: list[CollectionReport] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "ok": self.ok,
            "root": self.root,
            "shards": self.shards,
            "collections": [vars(collection) for collection in self.collections],
            "findings": self.findings,
        }

    def summary(self) -> str:
        """Return the report as a few lines of text."""
        lines = [
            f"{each.name}: {each.records:,} records and their checksums, {each.filters:,} filters"
            + (f", recall@10 {each.recall:.3f}" if each.recall is not None else "")
            for each in self.collections
        ]
        verdict = "nothing wrong was found" if self.ok else f"{len(self.findings)} findings:"
        return "\n".join([f"{self.shards} shards in {self.root}", *lines, verdict, *self.findings])


def verify_root(root: Path, note: Note = lambda text: None) -> VerifyReport:
    """Check a data directory.

    Args:
        root: The directory; no process may have it open.
        note: Told what is being checked.

    Raises:
        InvalidDataException: There is no database.
        StorageFailureException: Another process has it open, or it cannot be read.
        CorruptionError: The root file itself is damaged, so that nothing else can be found.
    """
    if not root.is_dir():
        raise InvalidDataException(f"there is no directory {str(root)!r}")
    state = _read_root(root)
    report = VerifyReport(str(root), state.shards)
    for shard in range(state.shards):
        note(f"shard {shard}: files")
        folder = shard_path(root, shard)
        if folder.is_dir():
            report.findings += _file_findings(folder)
        else:
            report.findings.append(f"{folder} is missing")
    if report.findings and any("is missing" in finding for finding in report.findings):
        return report
    try:
        with VecraftClient(root=root, settings=Settings()) as client:
            for schema in client.list_collections():
                note(f"{schema.name}: records and indexes")
                report.collections.append(_check_collection(client, schema, report.findings))
            note("history")
            report.findings += _history_findings(client, report.findings)
    except VecraftError as error:
        report.findings.append(f"{error.code}: {error.message}")
    return report


def _read_root(root: Path) -> RootState:
    try:
        return read_root(root)
    except FileNotFoundError as error:
        if any(root.glob("shard-*")):
            raise CorruptionError(
                f"{root} has shards but no {ROOT_FILE}: restore that file from a backup", file=str(root / ROOT_FILE)
            ) from error
        raise InvalidDataException(f"there is no database in {str(root)!r}") from error
    except OSError as error:
        raise StorageFailureException(f"cannot read {root}: {error}", path=str(root), errno=error.errno) from error


def _file_findings(folder: Path) -> list[str]:
    """Check SQLite's file and the saved graphs of one shard."""
    findings: list[str] = []
    with lock_directory(folder):
        findings += audit_guards(OsDisk(folder))
        database = folder / "shard.sqlite"
        if not database.exists():  # a shard that was never checkpointed has only its log
            return findings
        try:
            locations = Locations(database)
        except VecraftError as error:
            return [*findings, f"{error.code}: {error.message}"]
        try:
            locations.verify()
            for stored in locations.load_collections():
                if stored.hnsw_file is None:
                    continue
                path = OsDisk(folder).path(f"{stored.collection_id}/{stored.hnsw_file}")
                try:
                    verify_saved(path, stored.hnsw_checksum)
                except VecraftError as error:
                    findings.append(f"{error.code}: {error.message} (it is built again from the vectors)")
        except VecraftError as error:
            findings.append(f"{error.code}: {error.message}")
        finally:
            locations.close()
    return findings


def _history_findings(client: VecraftClient, known: list[str]) -> list[str]:
    """Check every version of every record; what is among ``known`` is not said again."""
    engine = client.engine
    if not isinstance(engine, EmbeddedEngine):
        return []
    said = "\n".join(known)
    found = (message for host in engine.hosts.values() for message in host.shard.audit())
    return [message for message in found if message not in said]


# -------------------------------------------------------------------------------------------------------- collections


@dataclass
class _Contents:
    """All records of a collection at one snapshot, without their vectors but for a sample."""

    ids: list[str] = field(default_factory=list)
    metadatas: list[dict[str, Any] | None] = field(default_factory=list)
    documents: list[Any] = field(default_factory=list)
    sample: list[Any] = field(default_factory=list)
    damaged: int = 0


def _check_collection(client: VecraftClient, schema: CollectionSchema, findings: list[str]) -> CollectionReport:
    found: list[str] = []
    report = CollectionReport(schema.name)
    with client.snapshot() as view:
        contents = _read_all(client, schema.name, view.timestamp, found)
        report.records = len(contents.ids)
        counted = view.count(schema.name)
        if counted != report.records:
            found.append(f"count says {counted} records, a scan finds {report.records}")
        for where, where_document in _filters(contents):
            report.filters += 1
            _check_filter(view, schema.name, contents, where, where_document, found)
        report.recall = _recall(view, schema, contents)
    if report.recall is not None and report.recall < schema.target_recall - RECALL_SLACK:
        found.append(f"recall@10 is {report.recall:.3f}, well below its target of {schema.target_recall}")
    findings += [f"collection {schema.name!r}: {finding}" for finding in found]
    return report


def _id_pages(client: VecraftClient, name: str, options: ReadOptions) -> Iterator[list[str]]:
    """Yield all ids, page by page, without reading the records."""
    router, after = client.engine.router, None
    while True:
        page = router.scan_page(name, ScanOptions(after, PAGE_ROWS, with_payloads=False), options)
        reply = client.engine.run(page)
        if reply.rows.ids:
            yield reply.rows.ids
            after = reply.rows.ids[-1]
        if not reply.more:
            return


def _read_all(client: VecraftClient, name: str, snapshot: int, found: list[str]) -> _Contents:
    """Read every record by its id; one that is damaged is named, and stands there without contents."""
    contents = _Contents()
    options = ReadOptions(as_of=snapshot)
    chosen = random.Random(0)
    for ids in _id_pages(client, name, options):
        for record_id, packet in zip(ids, _packets(client, name, ids, options, found), strict=True):
            contents.ids.append(record_id)
            contents.metadatas.append(None if packet is None else packet.metadata)
            contents.documents.append(None if packet is None else packet.document)
            if packet is None or packet.vector is None:
                contents.damaged += 1
                continue
            if len(contents.sample) < RECALL_QUERIES:
                contents.sample.append(packet.vector.to_numpy())
            elif (slot := chosen.randrange(len(contents.ids))) < RECALL_QUERIES:
                contents.sample[slot] = packet.vector.to_numpy()
    if sorted(set(contents.ids)) != contents.ids:
        found.append("a scan does not give every id once, in order")
    return contents


def _packets(
    client: VecraftClient, name: str, ids: list[str], options: ReadOptions, found: list[str]
) -> list[DataPacket | None]:
    """Read records, their checksums verified; None for one that is damaged, or not found though the scan has it."""
    try:
        rows = client.engine.run(client.engine.router.get(name, ids, options)).rows
        by_id = {packet.record_id: packet for packet in packets_of_rows(rows)}
    except VecraftError as error:
        if len(ids) == 1:
            found.append(error.message)
            return [None]
        half = len(ids) // 2  # the damaged ones are few: halving finds each in a few steps
        return [
            *_packets(client, name, ids[:half], options, found),
            *_packets(client, name, ids[half:], options, found),
        ]
    found += [
        f"a scan finds record {record_id!r}, looking it up does not" for record_id in ids if record_id not in by_id
    ]
    return [by_id.get(record_id) for record_id in ids]


def _filters(contents: _Contents) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Yield filters made of what the records hold, on metadata or on documents."""
    values: dict[str, dict[str, Any]] = {}
    for metadata in contents.metadatas:
        for name, value in (metadata or {}).items():
            known = values.setdefault(name, {})
            key = f"{type(value).__name__}:{value}" if isinstance(value, str | int | float) else type(value).__name__
            if len(known) < VALUES_PER_FIELD:
                known.setdefault(key, value)
    for name, known in values.items():
        if name.startswith("$"):
            continue  # such a field can be stored, and not be asked for
        yield {name: {"$exists": True}}, None
        plain = [value for value in known.values() if isinstance(value, str | int | float)]
        for value in plain:
            yield {name: {"$eq": value}}, None
        for kind in (str, int | float):
            ordered = sorted(value for value in plain if isinstance(value, kind) and not isinstance(value, bool))
            if ordered:
                yield {name: {"$gte": ordered[len(ordered) // 2]}}, None
        for value in known.values():
            if isinstance(value, list) and value and isinstance(value[0], str | int | float):
                yield {name: {"$contains": value[0]}}, None
    texts = [document for document in contents.documents if isinstance(document, str) and document.strip()]
    for text in random.Random(1).sample(texts, min(TEXTS_PER_COLLECTION, len(texts))):
        middle = len(text) // 2
        yield None, {"$contains": text[max(0, middle - 4) : middle + 4]}
        if found := words(text):
            yield None, {"$matches": " ".join(found[:2])}


def _check_filter(
    view: Any,
    name: str,
    contents: _Contents,
    where: dict[str, Any] | None,
    where_document: dict[str, Any] | None,
    found: list[str],
) -> None:
    try:
        answered = view.count(name, where=where, where_document=where_document)
    except VecraftError as error:
        if not contents.damaged:  # else it came across a record that is named already
            found.append(f"counting {where or where_document} fails: {error.message}")
        return
    if where is not None:
        condition = parse_where(where)
        expected = sum(matches(condition, metadata) for metadata in contents.metadatas)
    else:
        text_condition = parse_where_document(where_document)
        expected = sum(matches_document(text_condition, document) for document in contents.documents)
    # A damaged record has no contents here, but its postings were made before it was damaged.
    if not expected <= answered <= expected + contents.damaged:
        kind = "metadata" if where is not None else "document"
        found.append(f"the {kind} index counts {answered} for {where or where_document}, the records {expected}")


def _recall(view: Any, schema: CollectionSchema, contents: _Contents) -> float | None:
    """Return recall@10 over the sample, counting as right whatever is as near as the tenth; None without records."""
    if not contents.sample:
        return None
    queries = np.stack(contents.sample)
    exact = view.search_many(schema.name, queries, k=10, exact=True, include=())
    found = view.search_many(schema.name, queries, k=10, include=())
    right = total = 0
    for truth, answer in zip(exact, found, strict=True):
        if not truth:
            continue
        bound = truth[-1].distance * (1 + 1e-5) + 1e-6
        right += sum(result.distance <= bound for result in answer)
        total += len(truth)
    return right / total if total else None
